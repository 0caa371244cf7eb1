"""Settings: their names, fallbacks, defaults, and what is said of wrong ones."""

import pytest

from avtomatika_worker.config import InvalidSetting, WorkerConfig


def test_the_defaults_work_on_a_laptop() -> None:
    config = WorkerConfig({})

    config.validate()
    assert config.WORKER_ID.startswith("worker-")
    assert config.WORKER_ID != WorkerConfig({}).WORKER_ID
    assert config.ORCHESTRATORS == [{"url": "http://localhost:8080"}]
    assert config.WORKER_TOKEN == "your-secret-worker-token"
    assert config.RESOURCES == {"cpu_cores": 4, "gpu_info": None}
    assert (config.HEARTBEAT_INTERVAL, config.TASK_POLL_TIMEOUT) == (15, 30)
    assert (config.RESULT_MAX_RETRIES, config.RESULT_RETRY_INITIAL_DELAY) == (5, 1)
    assert list(config.INSTALLED_SOFTWARE) == ["python"]
    assert config.TASK_FILES_DIR == "/tmp/payloads"
    assert config.RESULT_SPOOL_DIR == "/tmp/payloads/.results"
    assert (config.WORKER_PORT, config.ENABLE_WEBSOCKETS) == (8083, False)


@pytest.mark.parametrize(
    ("environment", "attribute", "value"),
    [
        ({"WORKER_INDIVIDUAL_TOKEN": "a", "WORKER_TOKEN": "b"}, "WORKER_TOKEN", "a"),
        ({"WORKER_TOKEN": "b", "AVTOMATIKA_WORKER_TOKEN": "c"}, "WORKER_TOKEN", "b"),
        ({"AVTOMATIKA_WORKER_TOKEN": "c"}, "WORKER_TOKEN", "c"),
        ({"WORKER_PAYLOAD_DIR": "/data"}, "TASK_FILES_DIR", "/data"),
        ({"WORKER_PAYLOAD_DIR": "/data"}, "RESULT_SPOOL_DIR", "/data/.results"),
        ({"RESULT_SPOOL_DIR": "/spool"}, "RESULT_SPOOL_DIR", "/spool"),
        ({"NO_COLOR": "1"}, "NO_COLOR", True),
        ({"S3_BUCKET": "b"}, "S3_DEFAULT_BUCKET", "b"),
        ({"S3_BUCKET_NAME": "n"}, "S3_DEFAULT_BUCKET", "n"),
        ({"S3_ACCESS_KEY_ID": "k"}, "S3_ACCESS_KEY", "k"),
        ({"S3_SECRET_ACCESS_KEY": "k"}, "S3_SECRET_KEY", "k"),
        ({"ORCHESTRATOR_URL": "http://o"}, "ORCHESTRATORS", [{"url": "http://o"}]),
        (
            {"ORCHESTRATORS_CONFIG": '[{"url": "http://o", "weight": 2}]'},
            "ORCHESTRATORS",
            [{"url": "http://o", "weight": 2}],
        ),
        ({"MAX_CONCURRENT_TASKS": ""}, "MAX_CONCURRENT_TASKS", 10),
        ({"COST_PER_SECOND": "0.5"}, "COST_PER_SECOND", 0.5),
        ({"COST_PER_SKILL": '{"a": 1}'}, "COST_PER_SKILL", {"a": 1.0}),
        ({"WORKER_ENABLE_WEBSOCKETS": "True"}, "ENABLE_WEBSOCKETS", True),
        ({"WORKER_SHUTDOWN_TIMEOUT": "1.5"}, "SHUTDOWN_TIMEOUT", 1.5),
        (
            {"GPU_MODEL": "T4", "GPU_VRAM_GB": "16", "CPU_CORES": "8"},
            "RESOURCES",
            {"cpu_cores": 8, "gpu_info": {"model": "T4", "vram_gb": 16}},
        ),
    ],
)
def test_a_variable_is_found_under_its_names(
    environment: dict[str, str], attribute: str, value: object
) -> None:
    assert getattr(WorkerConfig(environment), attribute) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MAX_CONCURRENT_TASKS", "many"),
        ("HEARTBEAT_INTERVAL", "-1"),
        ("TASK_POLL_TIMEOUT", "nan"),
        ("WORKER_ENABLE_WEBSOCKETS", "yes"),
        ("ORCHESTRATORS_CONFIG", "{}"),
        ("COST_PER_SKILL", "{"),
        ("COST_PER_SECOND", "cheap"),
    ],
)
def test_a_wrong_variable_is_named(name: str, text: str) -> None:
    with pytest.raises(InvalidSetting, match=f"^{name} must be "):
        WorkerConfig({name: text})


def test_a_token_in_a_wrong_variable_is_not_shown() -> None:
    with pytest.raises(InvalidSetting) as refused:
        WorkerConfig({"ORCHESTRATORS_CONFIG": '{"url": "http://o", "token": "secret"}'})

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("attribute", "value", "text"),
    [
        ("WORKER_ID", "a b", "Invalid WORKER_ID: 'a b'. Must be alphanumeric, underscores, or "),
        ("ORCHESTRATORS", [], "No orchestrators configured."),
        ("ORCHESTRATORS", [{"priority": 1}], "Orchestrator configuration missing URL."),
        ("ORCHESTRATORS", [{"url": "http://o", "weight": 0}], "is below 1."),
        ("ORCHESTRATORS", [{"url": "http://o", "weight": "x"}], "Orchestrator configuration is"),
        ("RESOURCES", {"cpu_cores": "four"}, "RESOURCES: Expected `int | null`, got `str`"),
        ("INSTALLED_MODELS", [{"version": "1"}], "INSTALLED_MODELS: Object missing required"),
        ("MAX_CONCURRENT_TASKS", 0, "MAX_CONCURRENT_TASKS must be at least 1."),
        ("LOG_LEVEL", "loud", "LOG_LEVEL must be a level such as INFO, not 'loud'."),
        ("LOG_FORMAT", "xml", "LOG_FORMAT must be text or json, not 'xml'."),
        ("HEARTBEAT_INTERVAL", 0.0, "HEARTBEAT_INTERVAL must be above 0 seconds."),
        ("TASK_POLL_ERROR_DELAY", 0.0, "TASK_POLL_ERROR_DELAY must be above 0 seconds."),
        ("RESULT_MAX_RETRIES", -1, "RESULT_MAX_RETRIES must be at least 0."),
        ("WORKER_PORT", 70_000, "WORKER_PORT must be from 0 to 65535."),
        ("TLS_KEY_PATH", "/no.pem", "TLS_KEY_PATH: cannot read '/no.pem': No such file or"),
        (
            "ORCHESTRATORS",
            [{"url": "localhost:8080"}],
            "The URL of orchestrator 'localhost:8080' must begin with http:// or https://.",
        ),
    ],
)
def test_settings_a_worker_could_not_run_with_are_refused(
    attribute: str, value: object, text: str
) -> None:
    config = WorkerConfig({})
    setattr(config, attribute, value)

    with pytest.raises(ValueError) as refused:
        config.validate()

    assert text in str(refused.value)
