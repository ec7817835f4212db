"""mkdocs hooks: the root's pages join the site, and a link to a source file leads to a page with its text.

The Markdown stays right in the repository; links are rewritten only while the site is built.
"""

import re
from pathlib import Path
from posixpath import dirname, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
# site page: path in the repository
ROOT_PAGES = {"index.md": "README.md"} | {name: name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")}
LINK = re.compile(r"(!?)\[((?:[^][]|!\[[^]]*]\([^)]*\))*)]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for uri, path in ROOT_PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text()))
    sources = {linked(page.src_uri, target) for page in files.documentation_pages() for target in targets(page)}
    for path in sorted(sources):
        if uri_of(path) == source_uri(path) and (ROOT / path).is_file():
            files.append(File.generated(config, source_uri(path), content=listing(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown

    def rewritten(link: re.Match[str]) -> str:
        picture, text, target, anchor = link.groups()
        path = linked(here, target)
        if (ROOT / path).is_dir():
            return text
        return f"{picture}[{LINK.sub(rewritten, text)}]({relpath(uri_of(path), dirname(here) or '.')}{anchor or ''})"

    return LINK.sub(rewritten, markdown)


def targets(page: File) -> list[str]:
    return [target for _, _, target, _ in LINK.findall(page.content_string)]


def linked(uri: str, target: str) -> str:
    """The path in the repository that a link on a page of the site names."""
    return normpath(f"{dirname(ROOT_PAGES.get(uri, f'docs/{uri}'))}/{target}".lstrip("/"))


def uri_of(path: str) -> str:
    for uri, page in ROOT_PAGES.items():
        if page == path:
            return uri
    return path.removeprefix("docs/") if path.startswith("docs/") else source_uri(path)


def source_uri(path: str) -> str:
    return f"source/{path.lstrip('.')}.md"  # mkdocs leaves out what begins with a dot


def listing(path: str) -> str:
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n``````{Path(path).suffix[1:]}\n{(ROOT / path).read_text()}\n``````\n"
