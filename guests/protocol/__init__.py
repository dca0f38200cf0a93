"""The bytes between voter and agent: frames (``wire``) and HTTP messages (``message``)."""

__all__: list[str] = []
