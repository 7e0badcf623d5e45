"""docker-compose.yml says only what Docker Compose, our command line, our settings and our images know."""

import tomllib
from pathlib import Path

import pytest
import typer

from docker.build_here import TRIALS
from docker.compose_file import ROOT, ComposeError, Service, read_compose, read_image, start_order
from docker.run_without_docker import Places
from whatfits.service.cli.app import app
from whatfits.service.settings import Settings

COMPOSE = ROOT / "docker-compose.yml"
USAGE_ERROR = typer.BadParameter.__mro__[1]  # typer has it from click, or a copy of it
OURS = ("migrate", "service", "agent", "agent-cpu")
# libpq reads PGPASSWORD; the container toolkit reads NVIDIA_DRIVER_CAPABILITIES.
OTHERS_VARIABLES = {"PGPASSWORD", "NVIDIA_DRIVER_CAPABILITIES"}


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    return read_compose()


def parse(command: tuple[str, ...]) -> None:
    """Parse a command line as `whatfits` does, without running it."""
    program = typer.main.get_command(app)
    assert isinstance(program, typer.core.TyperGroup)
    context = typer.Context(program, info_name="whatfits")
    name, found, rest = program.resolve_command(context, list(command))
    assert found is not None
    found.make_context(name, rest, parent=context)


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = COMPOSE.read_text()
    assert old in text
    file = tmp_path / "docker-compose.yml"
    file.write_text(text.replace(old, new))
    return file


def test_there_is_what_a_team_needs(services: dict[str, Service]) -> None:
    assert set(services) == {"db", *OURS}


def test_only_profiles_bring_agents() -> None:
    assert set(read_compose(profiles=())) == {"db", "migrate", "service"}
    assert set(read_compose(profiles=("gpu",))) == {"db", "migrate", "service", "agent"}
    assert set(read_compose(profiles=("cpu",))) == {"db", "migrate", "service", "agent-cpu"}


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_one_of_the_program(services: dict[str, Service], name: str) -> None:
    parse(services[name].command)


@pytest.mark.parametrize("file", ["service", "agent"])
def test_so_is_what_an_image_runs_by_itself(file: str) -> None:
    image = read_image(Path(f"docker/{file}.Dockerfile"))
    assert image.entrypoint == ("whatfits",)
    parse(image.command)


@pytest.mark.parametrize(
    "command",
    [("serv",), ("serve", "--hosst", "0.0.0.0"), ("serve", "--port", "http"), ("migrate", "head")],
)
def test_a_command_that_the_program_has_not_is_found(command: tuple[str, ...]) -> None:
    with pytest.raises(USAGE_ERROR):
        parse(command)


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_with_a_value_it_takes(
    services: dict[str, Service], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = "WHATFITS_"
    given = dict(services[name].environment)
    ours = {variable: value for variable, value in given.items() if variable.startswith(prefix)}
    assert ours
    assert set(given) - set(ours) <= OTHERS_VARIABLES
    assert {variable.removeprefix(prefix).lower() for variable in ours} <= set(Settings.model_fields)

    for variable, value in ours.items():
        monkeypatch.setenv(variable, value)
    assert Settings().database_url == "postgresql://whatfits@db:5432/whatfits"
    assert Settings().log_json is True


def test_agents_of_one_machine_share_their_locks(services: dict[str, Service]) -> None:
    for name in ("agent", "agent-cpu"):
        (volume,) = services[name].raw["volumes"]
        assert volume["source"] == "agent-data"
        assert services[name].environment["WHATFITS_LOCK_FOLDER"] == volume["target"]


def test_the_server_runs_from_the_image_with_torch_where_that_is_asked(tmp_path: Path) -> None:
    environment = tmp_path / "tracing.env"
    environment.write_text("POSTGRES_PASSWORD=x\nWHATFITS_SERVER_IMAGE=agent\n")
    services = read_compose(env_file=environment)

    agent = services["agent"]
    for name in ("migrate", "service"):
        assert (services[name].image, services[name].dockerfile) == (agent.image, agent.dockerfile)
    assert services["service"].command[0] == "serve"
    (kept,) = services["service"].raw["volumes"]
    assert kept["target"] == read_image(Path("docker/agent.Dockerfile")).environment["XDG_DATA_HOME"]


def test_the_password_is_asked_for_and_kept_as_it_is(services: dict[str, Service], tmp_path: Path) -> None:
    awkward = "p@ss/w:rd #$1"  # that of docker/check.env
    assert services["db"].environment["POSTGRES_PASSWORD"] == awkward
    assert {services[name].environment["PGPASSWORD"] for name in OURS} == {awkward}

    empty = tmp_path / "empty.env"
    empty.write_text("POSTGRES_PASSWORD=\n")
    with pytest.raises(ComposeError, match="required variable POSTGRES_PASSWORD is missing"):
        read_compose(env_file=empty)
    with pytest.raises(ComposeError, match="required variable POSTGRES_PASSWORD is missing"):
        read_compose(env_file=ROOT / ".env.example")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("capabilities: [gpu]", "capabilitiez: [gpu]"),
        ("profiles: [gpu]", "profile: [gpu]"),
        ("condition: service_healthy", "condition: service_wealthy"),
        ("networks: [store]", "networks: [stor]"),
        ("agent-data:/data", "agent-date:/data"),
        ("count: all", "count: all\n              device_ids: ['0']"),
    ],
)
def test_a_misspelling_is_refused(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(ComposeError):
        read_compose(edited(tmp_path, old, new))


def test_a_port_published_to_everybody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ComposeError, match="every address"):
        read_compose(edited(tmp_path, '"127.0.0.1:${WHATFITS_PORT:-8000}:8000"', '"8000:8000"'))


def test_only_the_server_is_published_and_on_loopback_alone(services: dict[str, Service]) -> None:
    published = {
        name: [port.host_address for port in one.ports] for name, one in services.items() if one.ports
    }
    assert published == {"service": ["127.0.0.1"]}
    assert services["service"].environment["WHATFITS_PUBLISHED_ON"] == "loopback"


@pytest.mark.parametrize("name", OURS)
def test_our_containers_can_do_little(services: dict[str, Service], name: str) -> None:
    service = services[name]
    assert service.dockerfile is not None
    assert service.raw["user"] == read_image(service.dockerfile).user == "10001:10001"
    assert service.raw["read_only"] is True
    assert service.raw["cap_drop"] == ["ALL"]
    assert service.raw["security_opt"] == ["no-new-privileges:true"]
    assert service.raw["networks"].keys() == ({"store", "front"} if name == "service" else {"store"})


def test_each_starts_after_what_it_needs(services: dict[str, Service]) -> None:
    order = [service.name for service in start_order(services)]
    assert order[:2] == ["db", "migrate"]
    needed = {"db": "service_healthy", "migrate": "service_completed_successfully"}
    assert {name: dict(services[name].conditions) for name in OURS if name != "migrate"} == dict.fromkeys(
        ("service", "agent", "agent-cpu"), needed
    )
    assert services["migrate"].raw["restart"] == "no"


def test_the_image_and_the_compose_file_check_health_alike(services: dict[str, Service]) -> None:
    health = read_image(Path("docker/service.Dockerfile")).health
    assert services["service"].health == health
    assert "/healthz" in health[-1]
    assert services["db"].health[0] == "pg_isready"


def test_the_gpu_agent_asks_for_the_driver_and_room_to_share_memory(services: dict[str, Service]) -> None:
    (device,) = services["agent"].raw["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": -1, "capabilities": ["gpu"]}
    assert int(services["agent"].raw["shm_size"]) == 8 * 2**30


def test_images_carry_the_version_of_the_package(services: dict[str, Service]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {services[name].image.rpartition(":")[2] for name in OURS} == {version}


@pytest.mark.parametrize("file", ["service", "agent"])
def test_images_build_on_any_base_with_the_versions_that_were_tested(file: str) -> None:
    text = (ROOT / f"docker/{file}.Dockerfile").read_text()
    assert "ARG BASE=python:3.12-slim-bookworm\n" in text
    assert text.count("\nFROM ${BASE}") == 2
    installs = [line for line in text.replace("\\\n", " ").split("&&") if "pip install" in line]
    assert all("--constraint constraints.txt" in line or "--no-deps" in line for line in installs)


def test_every_image_is_tried_where_images_are_built() -> None:
    assert set(TRIALS) == {path.stem for path in (ROOT / "docker").glob("*.Dockerfile")}


def test_addresses_of_containers_become_those_of_this_machine(tmp_path: Path) -> None:
    places = Places(folder=tmp_path, ports={5432: 60001, 8000: 60002}, names=frozenset({"db"}))

    assert places.translate("postgresql://whatfits@db:5432/db") == "postgresql://whatfits@127.0.0.1:60001/db"
    assert places.translate("http://127.0.0.1:8000/healthz") == "http://127.0.0.1:60002/healthz"
    assert places.translate("0.0.0.0") == "127.0.0.1"
    assert places.translate("/data/locks") == f"{tmp_path}/locks"
    assert places.translate("10.0.0.0 18000 /database") == "10.0.0.0 18000 /database"
