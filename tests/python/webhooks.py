"""Verifies messages by the library of Standard Webhooks: they come as JSON on standard input, their bodies go out as JSON."""

import json
import sys

from standardwebhooks import Webhook

webhook = Webhook(sys.argv[1])
json.dump([webhook.verify(message["body"], message["headers"]) for message in json.load(sys.stdin)], sys.stdout)
