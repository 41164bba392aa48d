"""Certification: many simulated runs of a strategy, the smallest failure, and the certificate.

from trikv.testing.certify import certify
assert certify("mymode", seeds=range(1, 201)).is_kept
"""

from trikv.testing.certify.certificate import Certificate, certify

__all__ = ["Certificate", "certify"]
