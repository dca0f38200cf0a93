# Run by init, before the agent, in guests that allow faults inside. It starts a network card, which
# is reachable only through one port of the host's loopback, and an SSH server that accepts one key.
if [ -f /etc/trivisor/host_key ]; then
    for module in /lib/modules/access/*.ko; do
        $bb insmod "$module"
    done
    $bb ip link set lo up
    $bb ip address add 10.0.2.15/24 dev eth0
    $bb ip link set eth0 up
    # -s -j -k: no passwords, no port forwarding; -m: no greeting. Called by its bare name, it cannot
    # execute itself again for each connection: it forks, which saves 0.3 to 1 s.
    PATH=/usr/sbin dropbear -r /etc/trivisor/host_key -s -j -k -m -P /dev/null
fi
