"""The commands of ``trivisor`` that need more than one package of ``faultinject``."""

__all__: list[str] = []
