"""A counter: POST adds one, any other method reads it."""

from guests.service import Context, Reply, Request, Service


class Counter(Service):
    name = "counter"
    count = 0

    def apply(self, request: Request, context: Context) -> Reply:
        if request.method == "POST":
            self.count += 1
        return Reply(200, f"{self.count}\n")

    def snapshot(self):
        yield b"%d" % self.count

    def restore(self, state):
        self.count = int(state or 0)
