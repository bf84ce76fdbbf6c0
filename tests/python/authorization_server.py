"""An authorisation server made with Authlib: client credentials for access tokens that are JWTs (RFC 9068) or opaque.

Prints its issuer once it listens. Lines on standard input change its keys: `rotate` signs with new ones from then on,
`withdraw` drops all others. Each is answered with `done`. It ends with its input.
"""

import logging
import sys
import threading
import time

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin, TokenMixin, grants
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from flask import Flask, jsonify
from joserfc.jwk import ECKey, KeySet, RSAKey
from werkzeug.serving import make_server

RESOURCE, SECRET = sys.argv[1:]
SCOPES = ["score:predict", "models:read", "models:write", "model:churn"]
# A client gets tokens with the signature that it is called by.
SIGNED = {
    "RS256": lambda parameters: RSAKey.generate_key(2048, parameters),
    "ES256": lambda parameters: ECKey.generate_key("P-256", parameters),
}
LIFETIME = 300

app = Flask(__name__)
logging.getLogger("werkzeug").setLevel(logging.ERROR)
http = make_server("127.0.0.1", 0, app, threaded=True)
issuer = f"http://127.0.0.1:{http.port}"


def make_keys():
    made = {}
    for alg, make in SIGNED.items():
        made[alg] = make({"alg": alg, "use": "sig"})
        made[alg].ensure_kid()
    return made


# The newest first.
generations = [make_keys()]
opaque_tokens = {}


class Client(ClientMixin):
    def __init__(self, client_id):
        self.client_id = client_id

    def get_client_id(self):
        return self.client_id

    def get_allowed_scope(self, scope):
        return " ".join(name for name in scope.split() if name in SCOPES)

    def check_client_secret(self, client_secret):
        return client_secret == SECRET

    def check_endpoint_auth_method(self, method, endpoint):
        return method == "client_secret_basic"

    def check_grant_type(self, grant_type):
        return grant_type == "client_credentials"


class OpaqueToken(TokenMixin):
    def __init__(self, client, token):
        self.client, self.token, self.issued_at = client, token, int(time.time())

    def check_client(self, client):
        return client is self.client

    def is_expired(self):
        return self.issued_at + self.token["expires_in"] < time.time()

    def is_revoked(self):
        return False


class Jwt(JWTBearerTokenGenerator):
    def get_jwks(self):
        return KeySet([generations[0][self.alg]])

    def get_audiences(self, client, user, scope):
        return RESOURCE


class Introspection(IntrospectionEndpoint):
    CLIENT_AUTH_METHODS = ["client_secret_basic"]

    def check_permission(self, token, client, request):
        return client.client_id == "gateway"

    def query_token(self, token_string, token_type_hint):
        return opaque_tokens.get(token_string)

    def introspect_token(self, token):
        return {
            "active": True,
            "iss": issuer,
            "aud": RESOURCE,
            "sub": token.client.client_id,
            "client_id": token.client.client_id,
            "token_type": "Bearer",
            "scope": token.token["scope"],
            "iat": token.issued_at,
            "exp": token.issued_at + token.token["expires_in"],
        }


def save_token(token, request):
    if request.client.client_id == "opaque":
        opaque_tokens[token["access_token"]] = OpaqueToken(request.client, token)


class Grant(grants.ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic"]


clients = {client_id: Client(client_id) for client_id in [*SIGNED, "opaque", "gateway"]}
server = AuthorizationServer(app, query_client=clients.get, save_token=save_token)
server.register_grant(Grant)
server.register_endpoint(Introspection)
jwt_generators = {alg: Jwt(issuer, alg=alg, expires_generator=lambda *_: LIFETIME) for alg in SIGNED}
opaque_generator = BearerTokenGenerator(lambda **_: f"opaque-{time.time_ns()}")


def generate_token(grant_type, client, user=None, scope=None, expires_in=None, include_refresh_token=True):
    generator = jwt_generators.get(client.client_id, opaque_generator)
    return generator(grant_type, client, user=user, scope=scope, expires_in=LIFETIME, include_refresh_token=False)


server.register_token_generator("default", generate_token)


@app.post("/token")
def token():
    return server.create_token_response()


@app.post("/introspect")
def introspect():
    return server.create_endpoint_response("introspection")


@app.get("/keys")
def keys():
    return jsonify(keys=[key.as_dict(private=False) for made in generations for key in made.values()])


@app.get("/.well-known/oauth-authorization-server")
def metadata():
    return jsonify(
        issuer=issuer,
        token_endpoint=f"{issuer}/token",
        introspection_endpoint=f"{issuer}/introspect",
        jwks_uri=f"{issuer}/keys",
        response_types_supported=[],
        grant_types_supported=["client_credentials"],
    )


threading.Thread(target=http.serve_forever, daemon=True).start()
print(issuer, flush=True)
for line in sys.stdin:
    match line.strip():
        case "rotate":
            generations.insert(0, make_keys())
        case "withdraw":
            del generations[1:]
    print("done", flush=True)
