"""What the paper says in its section 4, claim by claim, beside what was measured of it."""

from faultinject.claims.claim import Claim, ClaimAnswer, Results
from faultinject.claims.page import write_page
from faultinject.claims.section4 import CLAIMS

__all__ = ["CLAIMS", "ClaimAnswer", "Claim", "Results", "write_page"]
