import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it, onTestFinished } from "vitest";
import { parse } from "yaml";

const root = fileURLToPath(new URL("..", import.meta.url));
const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
const NAMES_THE_VERSION = ["package.json", "package-lock.json", "CHANGELOG.md", "Dockerfile", "docs/deploy.md"];

/** A repository with the files that name the version, in which all placeholders are filled in. */
function readyToRelease(): string {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-release-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  for (const file of NAMES_THE_VERSION) {
    cpSync(join(root, file), join(folder, file), { recursive: true });
    edit(folder, file, (text) =>
      text.replaceAll("REPLACE-ME", "example").replace(/^(## \S+) \(.*\)$/m, "$1 (2026-12-01)"),
    );
  }
  git(folder, "init", "--quiet");
  git(folder, "add", ".");
  return folder;
}

function edit(folder: string, file: string, change: (text: string) => string): void {
  writeFileSync(join(folder, file), change(readFileSync(join(folder, file), "utf8")));
}

function git(cwd: string, ...args: string[]): void {
  expect(spawnSync("git", args, { cwd }).status).toBe(0);
}

function check(cwd: string, ...args: string[]) {
  const script = join(root, "scripts/check-release.mjs");
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, ...args], { cwd, encoding: "utf8" });
  return { status, stdout, stderr };
}

describe("the release check", () => {
  it("the release check accepts a checkout that has no placeholders and names the same version in all files", () => {
    expect(check(readyToRelease(), `v${version}`)).toEqual({
      status: 0,
      stdout: `Ready to release ${version}.\n`,
      stderr: "",
    });
  });

  it.each([
    [
      "a placeholder",
      "docs/deploy.md",
      (text: string) => `https://github.com/REPLACE-ME/x\n${text}`,
      "docs/deploy.md:1",
    ],
    ["an older lock file", "package-lock.json", (text: string) => text.replace(version, "0.0.1"), "is version 0.0.1"],
    ["a changelog without a date", "CHANGELOG.md", (text: string) => text.replace(" (2026-12-01)", ""), "has no date"],
    ["a changelog of another version", "CHANGELOG.md", (text: string) => text.replace(version, "0.0.1"), "begins with"],
    [
      "an image of another version",
      "Dockerfile",
      (text: string) => text.replace(version, "0.0.1"),
      "copilotfleet:0.0.1",
    ],
    [
      "a base image without a digest",
      "Dockerfile",
      (text: string) => text.replace(/@sha256:[0-9a-f]+/, ""),
      "does not pin node:24.21.0-trixie-slim by its digest",
    ],
  ])("the release check refuses %s, and names the place", (_, file, change, reason) => {
    const folder = readyToRelease();
    edit(folder, file, change);
    const { status, stderr } = check(folder);
    expect(status).toBe(1);
    expect(stderr).toContain(reason);
    expect(stderr.trim().split("\n")).toHaveLength(2);
  });

  it("the release check refuses a tag of another version", () => {
    const { status, stderr } = check(readyToRelease(), "v9.9.9");
    expect(status).toBe(1);
    expect(stderr).toContain(`the tag is v9.9.9, not v${version}`);
  });
});

describe("the workflows", () => {
  it("the continuous integration tests each version of Node.js that the package supports", () => {
    const { jobs } = parse(readFileSync(join(root, ".github/workflows/ci.yml"), "utf8")) as {
      jobs: { check: { strategy: { matrix: { node: number[] } } } };
    };
    expect(jobs.check.strategy.matrix.node).toEqual([20, 22, 24]);
  });

  it.each(["ci", "release"])("the workflow %s gives its token only read rights, unless a job asks for more", (name) => {
    const workflow = parse(readFileSync(join(root, `.github/workflows/${name}.yml`), "utf8")) as {
      permissions: unknown;
    };
    expect(workflow.permissions).toEqual({ contents: "read" });
  });
});
