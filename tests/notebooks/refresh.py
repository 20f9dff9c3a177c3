"""Take the outputs of the last run as the chapters' references: ``make notebooks``."""

from __future__ import annotations

import sys

from reference import FOLDER, ROOT, chapters, executed, reference_path, write


def main() -> int:
    """Write the references that changed, remove those whose chapter is gone."""
    wanted = {reference_path(chapter): chapter for chapter in chapters()}
    for path in sorted(set(FOLDER.rglob("*.txt")) - set(wanted)):
        path.unlink()
        print("removed", path.relative_to(ROOT))
    for path, chapter in wanted.items():
        try:
            text = write(executed(chapter))
        except KeyError:
            print(f"{chapter.relative_to(ROOT)}: not run as it stands, run make notebooks")
            return 1
        if not path.exists() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            print("wrote", path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
