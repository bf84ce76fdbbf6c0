"""Signs a text with a new RSA key that is too short, and prints its modulus and the signature, base64url, on a line each."""

import base64
import sys

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

key = rsa.generate_private_key(65537, 1024)
modulus = key.public_key().public_numbers().n.to_bytes(128, "big")
for value in (modulus, key.sign(sys.argv[1].encode(), padding.PKCS1v15(), SHA256())):
    print(base64.urlsafe_b64encode(value).rstrip(b"=").decode())
