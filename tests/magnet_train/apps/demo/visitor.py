"""A client that sends plain requests with any content, in place of the page's own scripts."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

FILE_META = {"_type": "gradio.FileData"}


class Visitor:
    """Requests to a running page.

    Args:
        url: Address of the page.
        session: Session id; the page's scripts draw a random one.
        headers: Sent with every request.
    """

    def __init__(self, url: str, session: str | None = None, **headers: str) -> None:
        self.address = urlsplit(url).netloc
        self.session = secrets.token_hex(6) if session is None else session
        self.headers = headers
        config = json.loads(self.get("/config")[1])
        parts = {part["id"]: part for part in config["components"]}
        self.stop = next(f for f in config["dependencies"] if f["api_name"] == "stop")
        self.function = next(f for f in config["dependencies"] if f["api_name"] == "generate")
        fields = [parts[number]["props"] for number in self.function["inputs"]]
        self.form: dict[str, Any] = {
            props.get("elem_id") or "takes": props.get("value") for props in fields
        } | {"random_seed": False, "clips": 1}
        """The initial values in the order in which they are sent, but for one clip and a fixed seed."""
        self.outputs = [parts[number]["props"].get("elem_id") for number in self.function["outputs"]]

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send one request; return status, body and headers.

        The status is 413 also where the server closed the connection during a large body.
        """
        connection = http.client.HTTPConnection(self.address, timeout=120)
        try:
            with contextlib.suppress(
                BrokenPipeError, ConnectionResetError
            ):  # the answer may be there already
                connection.request(method, path, body, self.headers | headers)
            answer = connection.getresponse()
            try:
                content = answer.read()
            except http.client.IncompleteRead as cut:  # messages of an unknown session
                content = cut.partial
            return answer.status, content, {k.lower(): v for k, v in answer.getheaders()}
        except (ConnectionResetError, http.client.RemoteDisconnected):
            if len(body or b"") < 2**20:
                raise
            return 413, b"", {}
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        return self.request("GET", path, **headers)[:2]

    def post(self, path: str, message: Any, **headers: str) -> tuple[int, bytes]:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self.request("POST", path, body, **{"Content-Type": "application/json"} | headers)[:2]

    def upload(self, name: str, content: bytes) -> tuple[int, Any]:
        """Upload a file; return the status, and its path at the server or the refusal."""
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--x--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        status, answer, _ = self.request("POST", "/gradio_api/upload", body, **kind)
        return status, json.loads(answer)[0] if status == 200 else answer.decode()

    def join(self, **fields: Any) -> tuple[int, bytes]:
        """Queue a filled form."""
        data = list((self.form | fields).values())
        return self.post(
            "/gradio_api/queue/join",
            {"data": data, "fn_index": self.function["id"], "session_hash": self.session},
        )

    def body_with_seed(self, seed: bytes) -> bytes:
        """Return the message of `join` with any bytes as the seed."""
        message = {"data": list((self.form | {"seed": "SEED"}).values()), "fn_index": self.function["id"]}
        return json.dumps(message | {"session_hash": self.session}).encode().replace(b'"SEED"', seed)

    def cancel(self) -> None:
        """Press Cancel while a clip is generated."""
        message = {"data": [], "fn_index": self.stop["id"], "session_hash": self.session}
        assert self.post("/gradio_api/run/predict", message)[0] == 200

    def leave(self) -> None:
        """Close the page: a browser's heartbeat ends."""
        connection = http.client.HTTPConnection(self.address, timeout=120)
        connection.request("GET", f"/gradio_api/heartbeat/{self.session}", None, self.headers)
        connection.getresponse().readline()
        connection.close()
        listening = http.client.HTTPConnection(self.address, timeout=120)
        listening.request(
            "GET", f"/gradio_api/queue/data?session_hash={quote(self.session)}", None, self.headers
        )
        listening.getresponse().readline()
        listening.close()

    def listen(self) -> list[dict[str, Any]]:
        """Return the messages of this session until its last request has ended."""
        status, body = self.get(f"/gradio_api/queue/data?session_hash={quote(self.session)}")
        lines = [line for line in body.decode().splitlines() if line.startswith("data: ")]
        return [json.loads(line.removeprefix("data: ")) for line in lines] if status == 200 else []

    def ask(self, **fields: Any) -> str:
        """Send a filled form; return all that the page answers, as one text."""
        status, body = self.join(**fields)
        return body.decode() if status != 200 else json.dumps(self.listen())

    def recording(self, path: str | Path, **more: Any) -> dict[str, Any]:
        """Return a reference to a file as the page's scripts write it."""
        return {"path": str(path), "meta": FILE_META, "orig_name": "a.wav"} | more
