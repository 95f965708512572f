"""Run transformers' own model tests, of the installed version, on the MVD classes: see README.md beside this file."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

# modules that the common tests import and the source distribution does not carry
STAND_INS = {
    "__init__.py": "",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/tiny_model_summary.json": "{}\n",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'dtype': 'float16',\n"
        "    'chunk_size_feed_forward': 5, 'id2label': {0: 'label'}, 'label2id': {'label': 0}}\n"
    ),
}


def download(folder: Path) -> Path:
    """The source distribution of the installed transformers."""
    requirement = f"transformers=={transformers.__version__}"
    options = ["--quiet", "--no-deps", "--no-binary=transformers", f"--dest={folder}"]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=True)
    (archive,) = folder.glob("transformers-*.tar.gz")
    return archive


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments[:1] == ["--sdist"]:
            archive, arguments = Path(arguments[1]), arguments[2:]
        else:
            archive = download(folder)
        with tarfile.open(archive) as tar:
            top = f"transformers-{transformers.__version__}/tests/"
            members = [member for member in tar if member.name.startswith(top) and member.name.count("/") == 2]
            for member in members:
                member.name = member.name.removeprefix(f"transformers-{transformers.__version__}/")
            tar.extractall(folder, members=members, filter="data")
        for name, content in STAND_INS.items():
            path = folder / "tests" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        source = folder / "src"
        source.mkdir()
        (source / "transformers").symlink_to(Path(transformers.__file__).parent)
        shutil.copy(Path(__file__).parent / "model_suite.py", folder / "test_mvd.py")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "test_mvd.py"]
        return subprocess.run([*command, *arguments], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
