"""Two servers with the settings of deploy/compose.replicas.yaml, on a real database and store."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from services.postgresql import PostgresqlServer
from services.s3 import S3Server

from .harness import Server, tiny_spec

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose.replicas.yaml"
SECRETS = "/run/secrets/treadle"
LEFT_OUT = {"TREADLE_TLS_CERT_FILE", "TREADLE_TLS_KEY_FILE", "TREADLE_CALLERS_FILE"}
"""What concerns one server alone: test_tls.py and others have it."""


@pytest.mark.shared
def test_replicas_train_and_continue_for_each_other(
    tmp_path: Path, postgresql_server: PostgresqlServer, s3_server: S3Server
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    database = postgresql_server.new_database()
    place = ("host=127.0.0.1", f"port={postgresql_server.port}", f"dbname={database}")
    service = secrets / "pg_service.conf"
    service.write_text("\n".join(["[treadle]", *place, "user=treadle", "password=any", ""]))
    service.chmod(0o640)  # as a mounted secret is, which libpq's own file of passwords may not be
    key = secrets / "state.key"
    key.write_text("a secret of more than sixteen bytes")
    key.chmod(0o640)
    services = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
    servers = []
    try:
        for name in ("treadle-1", "treadle-2"):
            variables = services[name]["environment"]
            environment = {
                variable: str(value).replace(SECRETS, str(secrets))
                for variable, value in variables.items()
                if variable not in LEFT_OUT
            }
            servers.append(
                Server(tmp_path / name, environment={**environment, **s3_server.environment})
            )
        one, two = (server.caller for server in servers)
        model = one.trained(tiny_spec("deployed"))
        assert two.generate("deployed", seed=1)[-1].result.version == model.version
        first = one.generate("deployed", seed=1, max_new_tokens=5, return_state=True)
        state = first[-1].result.state
        texts = [
            caller.text("deployed", state=state, seed=2, max_new_tokens=20) for caller in (one, two)
        ]
        assert texts[0] == texts[1]
    finally:
        for server in servers:
            server.close()
        postgresql_server.drop_database(database)
