// An authorisation server made with oidc-provider: client credentials for access tokens that are JWTs or opaque.
//
// Prints its issuer once it listens. Lines on standard input change its keys: `rotate` puts new ones before those that it
// has, `withdraw` drops all but the newest. Each is answered with `done`. It ends with its input.

import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import Provider from 'oidc-provider';

// Notices of the library are no answers to commands.
console.info = console.error;

const [resource, secret] = process.argv.slice(2);
// A client gets tokens with the signature that it is called by.
const signed = ['RS256', 'PS256', 'ES256', 'ES384', 'EdDSA'];
const scope = 'score:predict models:read models:write model:churn';

function makeKeys() {
  const make = (kind, options, alg) => {
    const { privateKey } = generateKeyPairSync(kind, options);
    return { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg };
  };
  return [
    make('rsa', { modulusLength: 2048 }, 'RS256'),
    make('rsa', { modulusLength: 2048 }, 'PS256'),
    make('ec', { namedCurve: 'P-256' }, 'ES256'),
    make('ec', { namedCurve: 'P-384' }, 'ES384'),
    make('ed25519', {}, 'EdDSA'),
  ];
}

function makeProvider(issuer, keys) {
  const client = (id) => ({
    client_id: id,
    client_secret: secret,
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    scope,
  });
  return new Provider(issuer, {
    clients: [...signed, 'opaque', 'gateway'].map(client),
    jwks: { keys },
    scopes: scope.split(' '),
    ttl: { ClientCredentials: (_context, token) => token.resourceServer.accessTokenTTL },
    enabledJWA: { idTokenSigningAlgValues: signed },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      introspection: { enabled: true, allowedPolicy: (_context, asking) => asking.clientId === 'gateway' },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => resource,
        getResourceServerInfo: (_context, indicator, { clientId }) => ({
          scope,
          audience: indicator,
          accessTokenTTL: 300,
          accessTokenFormat: clientId === 'opaque' ? 'opaque' : 'jwt',
          jwt: clientId === 'opaque' ? undefined : { sign: { alg: clientId } },
        }),
      },
    },
  });
}

let keys = makeKeys();
const server = createServer((request, response) => answer(request, response));
let answer;

server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const use = () => {
    answer = makeProvider(issuer, keys).callback();
  };
  use();
  const commands = {
    rotate: () => keys.unshift(...makeKeys()),
    withdraw: () => keys.splice(signed.length),
  };
  createInterface({ input: process.stdin })
    .on('line', (line) => {
      commands[line]();
      use();
      console.log('done');
    })
    .on('close', () => process.exit());
  console.log(issuer);
});
