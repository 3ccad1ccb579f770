"""Files and fine-tuning jobs by the `openai` package, from a file to generated text."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from treadle.server.access.callers.access_token import new_access_token
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, long_spec, tiny_spec, wait_for
from .openai_client import OPENER, connect

PAIRS = [{"prompt": "the quick", "completion": f" {word} fox."} for word in ("brown", "red")] * 30


def lines(items: list[dict[str, str]]) -> bytes:
    return "".join(f"{json.dumps(item)}\n" for item in items).encode()


@pytest.fixture(scope="module")
def client(http_server: Server) -> Iterator[openai.OpenAI]:
    with connect(http_server) as client:
        yield client


def put(client: openai.OpenAI, data: bytes, name: str = "data.jsonl") -> str:
    return client.files.create(file=(name, data), purpose="fine-tune").id


def finished(client: openai.OpenAI, job: str) -> Any:
    wait_for(lambda: client.fine_tuning.jobs.retrieve(job).finished_at)
    return client.fine_tuning.jobs.retrieve(job)


SETTINGS: Any = {"n_epochs": 1, "batch_size": 2}


def test_a_file(client: openai.OpenAI, http_server: Server) -> None:
    data = lines(PAIRS)
    made = client.files.create(file=("pairs.jsonl", data), purpose="fine-tune")
    assert (made.object, made.status, made.purpose) == ("file", "processed", "fine-tune")
    assert (made.filename, made.bytes) == ("pairs.jsonl", len(data))
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == data
    second = put(client, b"plain text", "naïve name.txt")
    assert client.files.retrieve(second).filename == "naïve name.txt"
    assert [file.id for file in client.files.list()][:2] == [second, made.id]
    assert [file.id for file in client.files.list(limit=1, after=second)][:1] == [made.id]
    assert [file.id for file in client.files.list(order="asc")][-1] == second
    assert client.files.delete(made.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=f"there is no file '{made.id}'"):
            call(made.id)
    client.files.delete(second)


def test_from_a_file_to_generated_text(client: openai.OpenAI) -> None:
    file = put(client, lines(PAIRS))
    held_out = put(client, lines(PAIRS[:4]))
    job = client.fine_tuning.jobs.create(
        model="new:gru",
        training_file=file,
        validation_file=held_out,
        suffix="openai-pairs",
        seed=5,
        hyperparameters={"n_epochs": 8, "batch_size": 2, "learning_rate_multiplier": 2},
    )
    assert job.status in ("validating_files", "queued", "running")
    assert (job.training_file, job.validation_file, job.seed) == (file, held_out, 5)
    assert (job.model, job.fine_tuned_model) == ("new:gru", None)
    done = finished(client, job.id)
    assert (done.status, done.fine_tuned_model) == ("succeeded", "openai-pairs@1")
    assert done.hyperparameters.model_dump() == {
        "n_epochs": 8,
        "batch_size": 2,
        "learning_rate_multiplier": 2,
    }
    assert done.trained_tokens > 100
    made = client.completions.create(
        model=done.fine_tuned_model, prompt="the quick", max_tokens=40, temperature=0
    )
    assert made.choices[0].text in (" brown fox.", " red fox.")
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    messages = [event.message for event in reversed(events)]
    assert messages[0] == "The job is queued"
    assert messages[-1] == "New fine-tuned model created: openai-pairs@1"
    metrics = [event for event in events if event.type == "metrics"]
    assert all("training loss=" in event.message for event in metrics)
    first, second = client.fine_tuning.jobs.list_events(job.id, limit=2).data
    rest = client.fine_tuning.jobs.list_events(job.id, limit=2, after=first.id)
    assert rest.data[0] == second
    last, best = client.fine_tuning.jobs.checkpoints.list(job.id)
    for checkpoint in (last, best):
        name = checkpoint.fine_tuned_model_checkpoint
        assert client.completions.create(model=name, prompt="the ").choices[0].text
    tuned = client.fine_tuning.jobs.create(
        model=done.fine_tuned_model, training_file=file, hyperparameters=SETTINGS
    )
    assert tuned.model == "openai-pairs@1"
    assert finished(client, tuned.id).fine_tuned_model == "openai-pairs-ft@1"
    assert [each.id for each in client.fine_tuning.jobs.list(limit=1)][:2] == [tuned.id, job.id]


def test_a_model_of_text_reads_items_as_lines(client: openai.OpenAI, http_server: Server) -> None:
    base = http_server.caller.trained(tiny_spec("openai-text"), TEXT + b"\n" * 10).name
    by_form = {
        "pairs": put(client, lines(PAIRS)),
        "texts": put(client, lines([{"text": "the quick brown fox."}] * 30)),
    }
    for form, file in by_form.items():
        job = client.fine_tuning.jobs.create(
            model=base, training_file=file, suffix=form, hyperparameters=SETTINGS
        )
        done = finished(client, job.id)
        assert (done.status, done.error) == ("succeeded", None)
        assert done.fine_tuned_model == f"openai-text-{form}@1"
        model = http_server.caller.stub.GetModel(pb.GetModelRequest(model=f"openai-text-{form}"))
        assert model.model.layout == pb.CORPUS_LAYOUT_TEXT


def test_a_failed_job_says_why(client: openai.OpenAI, http_model: str) -> None:
    file = put(client, b"{ not of this vocabulary }\n" * 50, "plain.txt")
    job = client.fine_tuning.jobs.create(model=http_model, training_file=file)
    done = finished(client, job.id)
    assert (done.status, done.fine_tuned_model) == ("failed", None)
    assert done.error.code == "invalid_argument"
    assert "vocabulary" in done.error.message
    again = client.fine_tuning.jobs.create(
        model=http_model,
        training_file=file,
        hyperparameters=SETTINGS,
        extra_body={"unknown_policy": "skip"},
    )
    assert finished(client, again.id).status == "succeeded"


def test_a_job_pauses_resumes_and_is_cancelled(client: openai.OpenAI, http_server: Server) -> None:
    events = http_server.caller.train(long_spec("openai-long"), TEXT)
    job = next(events).job
    next(event for event in events if event.HasField("progress"))
    assert client.fine_tuning.jobs.retrieve(job).status == "running"
    client.fine_tuning.jobs.pause(job)
    wait_for(lambda: str(client.fine_tuning.jobs.retrieve(job).status) == "paused")
    client.fine_tuning.jobs.resume(job)
    wait_for(lambda: client.fine_tuning.jobs.retrieve(job).status == "running")
    client.fine_tuning.jobs.cancel(job)
    wait_for(lambda: client.fine_tuning.jobs.retrieve(job).status == "cancelled")
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.pause(job)
    for method in ("retrieve", "cancel", "pause", "resume", "list_events"):
        with pytest.raises(openai.NotFoundError):
            getattr(client.fine_tuning.jobs, method)("none")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model"),
    "an unknown network": ({"model": "new:transformer"}, "model"),
    "the weights of a job": ({"model": "job:a"}, "model"),
    "no file": ({"training_file": None}, "training_file"),
    "no name": ({"suffix": None}, "suffix"),
    "a bad name": ({"suffix": "a/b"}, "suffix"),
    "a word as epochs": ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs"),
    "no batch": ({"hyperparameters": {"batch_size": 0}}, "hyperparameters.batch_size"),
    "an unknown setting": ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta"),
    "dpo": ({"method": {"type": "dpo"}}, "method.type"),
    "settings of dpo": ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
    "settings twice": (
        {"hyperparameters": {}, "method": {"supervised": {"hyperparameters": {}}}},
        "hyperparameters",
    ),
    "integrations": ({"integrations": [{"type": "wandb"}]}, "integrations"),
    "metadata": ({"metadata": {"a": "b"}}, "metadata"),
    "an unknown field": ({"other": 1}, "other"),
    "a negative seed": ({"seed": -1}, "seed"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_served_names_the_field(client: openai.OpenAI, fault: str) -> None:
    fields, param = REFUSED[fault]
    body = {"model": "new:lstm", "training_file": "file-none", "suffix": "x"} | fields
    with pytest.raises(openai.BadRequestError) as failure:
        client.post("/fine_tuning/jobs", body=body, cast_to=object)
    assert failure.value.param == param


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
def test_a_file_that_does_not_exist_is_named_with_its_field(
    client: openai.OpenAI, param: str
) -> None:
    body = {"model": "new:lstm", "training_file": put(client, lines(PAIRS)), "suffix": "x"}
    with pytest.raises(openai.NotFoundError, match="there is no file 'file-none'") as failure:
        client.post("/fine_tuning/jobs", body=body | {param: "file-none"}, cast_to=object)
    assert failure.value.param == param


FILES: dict[str, tuple[bytes, str]] = {
    "chats": (b'{"messages": []}\n', "chats"),
    "other fields": (b'{"input": "a"}\n', "input"),
    "more fields": (b'{"text": "a", "b": 1}\n', "'b'"),
    "a second form": (lines(PAIRS[:2]) + b'{"text": "a"}\n', "line 3"),
    "no JSON": (lines(PAIRS[:2]) + b"{\n", "line 3 is not JSON"),
    "a number": (lines(PAIRS[:1]) + b'{"prompt": 1, "completion": "a"}', "line 2"),
    "half a character": (lines(PAIRS[:1]) + b'{"prompt": "\\ud83d", "completion": ""}', "line 2"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_cannot_be_trained_on(client: openai.OpenAI, fault: str) -> None:
    data, shown = FILES[fault]
    file = put(client, data)
    with pytest.raises(openai.BadRequestError, match=shown) as failure:
        client.fine_tuning.jobs.create(model="new:lstm", training_file=file, suffix="x")
    assert failure.value.param == "training_file"
    client.files.delete(file)


def test_files_that_are_not_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.create(model="new:lstm", training_file="file-none", suffix="x")
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.create(model="missing", training_file="file-none")


def form(*parts: tuple[str, bytes], end: bytes = b"--x--\r\n") -> bytes:
    found = b"".join(
        b"--x\r\ncontent-disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return found + end


FILE = ('name="file"; filename="a.txt"', b"abc")
PURPOSE = ('name="purpose"', b"fine-tune")
FORM = "multipart/form-data; boundary=x"
FORMS: dict[str, tuple[bytes, str, str]] = {
    "no form": (b"{}", "application/json", "file"),
    "no boundary": (b"", "multipart/form-data", "file"),
    "no file": (form(PURPOSE), FORM, "file"),
    "no purpose": (form(FILE), FORM, "purpose"),
    "another purpose": (form(('name="purpose"', b"batch"), FILE), FORM, "purpose"),
    "another purpose, last": (form(FILE, ('name="purpose"', b"batch")), FORM, "purpose"),
    "two files": (form(FILE, FILE, PURPOSE), FORM, "file"),
    "an empty file": (form((FILE[0], b""), PURPOSE), FORM, "file"),
    "an unknown field": (form(PURPOSE, ('name="x"', b"1"), FILE), FORM, "x"),
    "an end of its own": (
        form(PURPOSE, ('name="expires_after[seconds]"', b"1")),
        FORM,
        "expires_after",
    ),
    "a long purpose": (form(('name="purpose"', b"a" * 5000), FILE), FORM, "purpose"),
    "long headers": (form((f'name="file"; filename="{"a" * 3000}"', b"a"), PURPOSE), FORM, "file"),
    "not whole": (form(PURPOSE, FILE, end=b""), FORM, "file"),
    "malformed": (b"--y\r\n", FORM, "file"),
}


@pytest.mark.parametrize("fault", FORMS)
def test_a_form_that_is_no_upload(http_server: Server, client: openai.OpenAI, fault: str) -> None:
    body, content_type, param = FORMS[fault]
    before = [file.id for file in client.files.list()]
    request = urllib.request.Request(f"{http_server.http_url}/v1/files", body)
    request.add_header("content-type", content_type)
    with pytest.raises(urllib.error.HTTPError) as failure:
        OPENER.open(request, timeout=PATIENCE_S)
    error = json.loads(failure.value.read())["error"]
    assert (failure.value.code, error["param"]) == (400, param), error
    assert [file.id for file in client.files.list()] == before


def test_a_form_in_the_other_order(http_server: Server, client: openai.OpenAI) -> None:
    request = urllib.request.Request(f"{http_server.http_url}/v1/files", form(FILE, PURPOSE))
    request.add_header("content-type", FORM)
    with OPENER.open(request, timeout=PATIENCE_S) as response:
        made = json.loads(response.read())
    assert client.files.content(made["id"]).read() == b"abc"


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "after=file-none", "order=up", "other=1", "limit=99999999999"]
)
def test_a_query_that_is_wrong(client: openai.OpenAI, query: str) -> None:
    with pytest.raises(openai.BadRequestError) as failure:
        client.get(f"/files?{query}", cast_to=object)
    assert failure.value.param == query.partition("=")[0]


# ---------------------------------------------------------------- two tenants


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A server with callers: the client of each, and the server as `server`."""
    folder = tmp_path_factory.mktemp("openai-tenants")
    tokens = {name: new_access_token() for name in ("ann", "bob", "reader")}
    callers = folder / "callers.toml"
    callers.touch(mode=0o600)
    text = ""
    for name, token in tokens.items():
        role = "reader" if name == "reader" else "trainer"
        write = f'write_models = ["{name}-*"]\n' if role == "trainer" else ""
        text += f'[callers.{name}]\nrole = "{role}"\nread_models = ["{name}-*"]\n{write}'
        text += "quotas = { corpus_bytes = 20000 }\n"
        text += f'[[callers.{name}.tokens]]\nid = "{token.id}"\nsha256 = "{token.sha256.hex()}"\n'
    callers.write_text(text)
    flags = ("--http-address", "127.0.0.1:0", "--standby-workers", "0")
    server = Server(folder / "data", *flags, "--callers-file", str(callers))
    found: dict[str, Any] = {"server": server, "nobody": connect(server, "wrong")}
    found |= {name: connect(server, token.text) for name, token in tokens.items()}
    yield found
    for name, client in found.items():
        if name != "server":
            client.close()
    server.close()
    for sign in ("Traceback", "internal error", *(token.text for token in tokens.values())):
        assert sign not in server.log


def seen(call: Any, name: str) -> tuple[int, str]:
    """Returns what a client gets to see of a thing, without its name."""
    with pytest.raises(openai.APIStatusError) as failure:
        call(name)
    bare = name.removeprefix("job:").partition("@")[0]
    return failure.value.status_code, json.dumps(failure.value.body).replace(bare, "NAME")


def test_what_is_of_another_is_as_what_is_not_there(tenants: dict[str, Any]) -> None:
    ann: openai.OpenAI = tenants["ann"]
    bob: openai.OpenAI = tenants["bob"]
    file = put(ann, lines(PAIRS))
    job = ann.fine_tuning.jobs.create(
        model="new:rnn", training_file=file, suffix="ann-names", hyperparameters=SETTINGS
    )
    assert finished(ann, job.id).fine_tuned_model == "ann-names@1"
    call: Any
    for call in (bob.files.retrieve, bob.files.content, bob.files.delete):
        hers = seen(call, file)
        assert hers == seen(call, "file-" + "0" * 24)
        assert hers[0] == 404
    jobs = bob.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events):
        hers = seen(call, job.id)
        assert hers == seen(call, "0" * len(job.id))
        assert hers[0] == 404
    checkpoints: Any = jobs.checkpoints.list
    assert seen(checkpoints, job.id) == seen(checkpoints, "0" * len(job.id))

    def tune(name: str) -> None:
        jobs.create(model="new:rnn", training_file=name, suffix="bob-names")

    def complete(name: str) -> None:
        bob.completions.create(model=name, prompt="a")

    assert seen(tune, file) == seen(tune, "file-" + "0" * 24)
    for call in (complete, bob.models.retrieve):
        assert seen(call, "ann-names@1") == seen(call, "ann-ghost@1")
        assert seen(call, "ann-names") == seen(call, "ann-ghost")
    assert seen(complete, f"job:{job.id}") == seen(complete, "job:" + "0" * len(job.id))
    for listed in (bob.files, bob.fine_tuning.jobs, bob.models):
        assert listed.list().data == []
    assert ann.files.list().data[0].id == file
    with pytest.raises(openai.PermissionDeniedError):
        ann.fine_tuning.jobs.create(model="new:rnn", training_file=file, suffix="bob-names")


def test_rights_and_quotas(tenants: dict[str, Any]) -> None:
    nobody: openai.OpenAI = tenants["nobody"]
    for call in (
        nobody.models.list,
        nobody.files.list,
        nobody.fine_tuning.jobs.list,
        lambda: nobody.completions.create(model="ann-names", prompt="a" * 100_000),
        lambda: nobody.embeddings.create(model="ann-names", input="a"),
        lambda: put(nobody, b"abc"),
    ):
        with pytest.raises(openai.AuthenticationError) as unknown:
            call()
        assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError):
        put(tenants["reader"], b"abc")
    with pytest.raises(openai.RateLimitError) as full:
        put(tenants["bob"], b"a" * 20_001)
    assert full.value.code == "insufficient_quota"
    assert full.value.response.headers["x-should-retry"] == "false"
    assert tenants["bob"].files.list().data == []
