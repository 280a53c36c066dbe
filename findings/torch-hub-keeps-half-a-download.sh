#!/usr/bin/env bash
# torch 2.13.0: torch.hub.download_url_to_file keeps half a file as if it were whole.
#
# Expected: the server says `Content-Length: 1048576` and the connection ends after half of that, so the download
#   fails (as `curl` does with exit code 18 and urllib.request.urlretrieve with ContentTooShortError), or at least
#   nothing is left under the name that was asked for.
# What happens: no error; the half file is moved to its final name, and everything that looks there afterwards
#   (`torch.hub.load_state_dict_from_url` looks by name alone) takes it for the weights. Only with `hash_prefix` is it
#   noticed, as "invalid hash value", which reads like another file and not like a cut connection.
# Who is hurt: whoever fetches weights over a network with a proxy; see attnbench/commands/weights.py, which reads
#   the length and the hash and says which of the two it was.
# Fails when this changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0
cat > "$place/check.py" <<'PY'
import hashlib
import http.server
import socket
import sys
import threading
import urllib.error
import urllib.request

import torch.hub

WHOLE = bytes(range(256)) * 4096
folder = sys.argv[1]


class CutAfterHalf(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(WHOLE)))
        self.end_headers()
        self.wfile.write(WHOLE[: len(WHOLE) // 2])
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), CutAfterHalf)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_address[1]}/weights.pt"

try:
    urllib.request.urlretrieve(url, f"{folder}/by-urllib")
    raise SystemExit("urllib no longer notices a cut connection")
except urllib.error.ContentTooShortError as error:
    print(f"urllib: {error.reason}")

torch.hub.download_url_to_file(url, f"{folder}/weights.pt", progress=False)  # raises nothing
kept = open(f"{folder}/weights.pt", "rb").read()
print(f"torch {torch.__version__}: no error, {len(kept):,} of {len(WHOLE):,} bytes under the final name")
assert kept == WHOLE[: len(WHOLE) // 2], "torch.hub no longer keeps half a file"

try:
    digest = hashlib.sha256(WHOLE).hexdigest()
    torch.hub.download_url_to_file(url, f"{folder}/hashed.pt", hash_prefix=digest, progress=False)
    raise SystemExit("torch.hub no longer checks the hash")
except RuntimeError as error:
    print(f"with hash_prefix: {str(error)[:40]}...")
    assert "invalid hash value" in str(error)
server.shutdown()
PY
"$place/venv/bin/python" "$place/check.py" "$place"
echo "finding holds"
