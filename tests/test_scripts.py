"""The shell scripts: what they say when something is missing, and what they run in which order (with a stand-in for Python)."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import missing_requirements

SHELL_SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]
TOOLS = ("bash", "basename", "dirname", "cat", "cmp", "cp", "grep", "ls", "mkdir", "rm", "sed")


@pytest.fixture
def project(tmp_path):
    """A folder with the scripts and requirements.txt, and an empty main.py; commands are those of `tools` alone."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.txt", folder)
    (tmp_path / "tools").mkdir()
    for tool in TOOLS:
        (tmp_path / "tools" / tool).symlink_to(shutil.which(tool))
    return folder


def add_tool(project, name, text):
    """Puts a shell script of this name among the commands that are found."""
    path = project.parent / "tools" / name
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)


MAKE_VENV = 'mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo > .venv/pyvenv.cfg'
MAKE_SCENE = "mkdir -p data/demo/sparse/0; echo > data/demo/sparse/0/points3D.bin"


def add_python(project, answers=None):
    """A stand-in for python3 that logs how it is called, then does what `answers` (part of its arguments -> shell command) say first."""
    cases = "\n".join(f'    *"{key}"*) {answer} ;;' for key, answer in (answers or {}).items())
    add_tool(project, "python3", f'echo "$*" >> {project}/calls\ncase "$*" in\n{cases}\n    *) exit 0 ;;\nesac')


def run(project, script, *arguments, **environment):
    variables = {"PATH": str(project.parent / "tools"), "HOME": str(project), **environment}
    command = [shutil.which("bash"), str(project / "scripts" / script), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)


def complaint(result):
    """The one line on stderr of a script that gave up."""
    assert result.returncode == 1, result
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o100 or script.name in ("environment.sh", "training_sets.sh")


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "install_ext.sh"])
def test_missing_compiler(project, script):
    assert re.search(r"no C\+\+ compiler.*apt-get install g\+\+", complaint(run(project, script)))


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "install_ext.sh"])
def test_missing_python(project, script):
    add_tool(project, "g++", "exit 0")
    assert re.search(r"no Python.*apt-get install python3", complaint(run(project, script)))


def test_compiler_and_python_by_variable(project):
    add_tool(project, "clang", "exit 0")
    assert "'mypython'" in complaint(run(project, "test.sh", CXX="clang -v", PYTHON="mypython"))


def test_python_that_is_too_old(project):
    add_tool(project, "g++", "exit 0")
    add_python(project, {"version_info": "exit 1", "python_version": "echo 3.9.2"})
    assert re.search(r"3\.11 or newer.*3\.9\.2.*apt-get install", complaint(run(project, "test.sh")))


def test_missing_venv_module(project):
    add_tool(project, "g++", "exit 0")
    add_python(project, {"import venv": "exit 1"})
    assert re.search(r"no venv module: apt-get install python3-venv", complaint(run(project, "quickstart.sh")))


def test_a_folder_that_is_no_virtual_environment_is_left_alone(project):
    add_tool(project, "g++", "exit 0")
    add_python(project)
    (project / "precious").mkdir()
    (project / "precious" / "letter").write_text("dear")
    assert "precious exists and is no virtual environment" in complaint(run(project, "test.sh", VENV="precious"))
    assert (project / "precious" / "letter").read_text() == "dear"


def test_packages_are_installed_once_and_torch_first(project):
    add_tool(project, "g++", "exit 0")
    add_python(project, {"-m venv": MAKE_VENV})
    for _ in range(2):
        assert run(project, "test.sh", "-k", "nothing").returncode == 0
    calls = (project / "calls").read_text().splitlines()
    installs = [call for call in calls if "pip install" in call]
    assert len(installs) == 2
    assert installs[0].split()[-1].startswith("torch==") and installs[1].endswith("-r requirements.txt")
    assert calls[-1].startswith("-m pytest") and calls[-1].endswith("-k nothing")
    (project / "requirements.txt").write_text("torch==9.9\n")
    assert run(project, "test.sh", TORCH_INDEX="the-index").returncode == 0
    installs = [call for call in (project / "calls").read_text().splitlines() if "pip install" in call]
    assert len(installs) == 4 and installs[2].endswith("--index-url the-index torch==9.9") and "the-index" not in installs[3]


def test_a_failed_install_is_tried_again(project):
    add_tool(project, "g++", "exit 0")
    add_python(project, {"-m venv": MAKE_VENV, "-r requirements.txt": "exit 1"})
    for _ in range(2):
        assert "requirements.txt could not be installed" in complaint(run(project, "test.sh"))


def test_system_python_that_lacks_packages(project):
    add_tool(project, "g++", "exit 0")
    add_python(project, {"missing_requirements": "echo torch scipy"})
    assert "lacks torch scipy" in complaint(run(project, "quickstart.sh", "--system"))


def test_install_ext_compiles_every_package(project):
    add_tool(project, "g++", "exit 0")
    add_python(project, {"setup.py": f'echo "$PWD" >> {project}/built'})
    packages = sorted(file.parent.name for file in ROOT.glob("*/setup.py"))
    for package in packages:
        (project / package).mkdir()
        shutil.copy(ROOT / package / "setup.py", project / package)
    result = run(project, "install_ext.sh", "--system")
    assert result.returncode == 0, result.stderr
    assert (project / "built").read_text().split() == [str(project / package) for package in packages]
    assert {"freqencoder", "fusedadam", "fusedfield", "gridencoder", "raymarching", "raysampling", "samplemining", "shencoder"} <= set(packages)
    add_python(project, {"setup.py": "echo 'gridencoder: compiling failed' >&2; exit 1"})
    failed = run(project, "install_ext.sh", "--system")
    assert failed.returncode == 1 and "could not be compiled (see the lines above)" in failed.stderr


def test_quickstart_runs_its_steps_in_order(project):
    add_tool(project, "g++", "exit 0")
    add_python(project, {"make_demo_scene": MAKE_SCENE, "-": '[ "$1" != - ] || echo cpu'})
    result = run(project, "quickstart.sh", "--system", "--minutes", "0.5")
    assert result.returncode == 0, result.stderr
    calls = (project / "calls").read_text().splitlines()
    jobs = [call for call in calls if call.startswith(("main.py", "scripts/make", "scripts/report"))]
    assert [job.split()[0] for job in jobs] == ["scripts/make_demo_scene.py", "main.py", "main.py", "main.py", "scripts/report.py"]
    baseline, hsm, test = jobs[1:4]
    assert "--hsm" not in baseline.split() and "--hsm" in hsm.split()
    assert baseline.replace("trial_demo/baseline", "") == hsm.replace("trial_demo/hsm", "").replace(" --hsm", "")
    assert "--max_training_time 0.5" in hsm and "--device cpu" in hsm and "--ckpt scratch" in hsm
    assert "--test" in test.split() and "scratch" not in test
    assert run(project, "quickstart.sh", "--system").returncode == 0
    assert (project / "calls").read_text().count("make_demo_scene.py") == 1


def test_quickstart_stops_at_the_first_failure(project):
    add_tool(project, "g++", "exit 0")
    add_python(project, {"main.py": "echo 'main.py: broken.' >&2; exit 1", "-": '[ "$1" != - ] || echo cpu'})
    result = run(project, "quickstart.sh", "--system")
    assert result.returncode == 1 and result.stderr == "main.py: broken.\n"
    assert (project / "calls").read_text().count("main.py data") == 1


def test_quickstart_arguments(project):
    assert "unknown argument --minute" in complaint(run(project, "quickstart.sh", "--minute", "2"))
    assert "--minutes needs" in complaint(run(project, "quickstart.sh", "--minutes"))
    helped = run(project, "quickstart.sh", "--help")
    assert helped.returncode == 0 and "--minutes M" in helped.stdout and "#" not in helped.stdout


def test_flags_of_quickstart_are_known():
    from nerf.options import parse_options

    text = (ROOT / "scripts" / "quickstart.sh").read_text().replace("\\\n", " ")
    commands = re.findall(r'"\$PYTHON" main.py "\$SCENE" (.*)', text)
    flags = re.search(r"FLAGS=\((.*)\)", text)[1]
    assert len(commands) == 2
    for command in commands:
        for variable, value in {'"${FLAGS[@]}"': flags, '"$@"': "", '"$MINUTES"': "1", '"$DEVICE"': "cpu"}.items():
            command = command.replace(variable, value)
        parse_options(["data/demo", *re.sub(r'"[^"]*"', "folder", command).split()])


def test_every_requirement_is_pinned_exactly():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9-]+==[0-9.]+", line) for line in lines)
    assert lines[0].startswith("torch==")


def test_missing_requirements():
    assert missing_requirements.required("# a comment\ntorch==2.13.0\n\nimageio-ffmpeg==0.8.1  # video\n") == ["torch", "imageio-ffmpeg"]
    assert missing_requirements.is_installed("pytest")
    assert not missing_requirements.is_installed("no-such-package-anywhere")


def test_container_copies_what_exists():
    copied = re.findall(r"^    (\S+) /opt/hsm-nerf/", (ROOT / "hsm.def").read_text(), re.MULTILINE)
    packages = {file.parent.name for file in ROOT.glob("*/setup.py")}
    assert {"main.py", "nerf", "scripts", "requirements.txt", "kernel_build.py", "kernel_setup.py", *packages} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
