# Run by init, before the agent, in guests that allow faults inside: a network card whose only way in
# is one port of the host's loopback, and an SSH server that takes one key and no password.
if [ -f /etc/trivisor/host_key ]; then
    for module in /lib/modules/access/*.ko; do
        $bb insmod "$module"
    done
    $bb ip link set lo up
    $bb ip address add 10.0.2.15/24 dev eth0
    $bb ip link set eth0 up
    # -s -j -k: no passwords, nothing forwarded either way; -m: no greeting. Called by its bare name it
    # does not find itself again to start anew for each connection, but forks: 0.3 to 1 s less.
    PATH=/usr/sbin dropbear -r /etc/trivisor/host_key -s -j -k -m -P /dev/null
fi
