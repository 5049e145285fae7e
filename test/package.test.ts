import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, posix } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it, onTestFinished } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
const read = (path: string) => readFileSync(join(root, path), "utf8");

interface Package {
  os: string[];
  dependencies: Record<string, string>;
}
interface LockedPackage {
  os?: string[];
  cpu?: string[];
  dependencies?: Record<string, string>;
  optionalDependencies?: Record<string, string>;
}

const LARGEST_BYTES = 2_000_000;
const MOST_PACKAGES = 110;
const SDK = "@github/copilot-sdk";

const manifest = JSON.parse(read("package.json")) as Package;
const locked = (JSON.parse(read("package-lock.json")) as { packages: Record<string, LockedPackage> }).packages;

interface Tarball {
  size: number;
  files: { path: string }[];
}

let packed: Tarball | undefined;

function pack(): Tarball {
  if (packed === undefined) {
    const listing = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: root });
    [packed] = JSON.parse(listing.toString()) as [Tarball];
  }
  return packed;
}

/** The paths of the packages that npm installs for these names on Linux x64, with all their dependencies. */
function installed(names: Iterable<string>, from = "", found = new Set<string>()): Set<string> {
  for (const name of names) {
    // npm looks in the folder of the package, and then in the folders above it.
    let at = from;
    while (at !== "" && !(`${at}/node_modules/${name}` in locked))
      at = at.slice(0, Math.max(0, at.lastIndexOf("/node_modules/")));
    const path = `${at === "" ? "" : `${at}/`}node_modules/${name}`;
    const { os = ["linux"], cpu = ["x64"], ...entry } = locked[path] ?? {};
    if (found.has(path) || !(path in locked) || !os.includes("linux") || !cpu.includes("x64")) continue;
    found.add(path);
    installed(Object.keys({ ...entry.dependencies, ...entry.optionalDependencies }), path, found);
  }
  return found;
}

describe("the published package", () => {
  it("the published package has at most 2 MB", () => {
    expect(pack().size).toBeLessThanOrEqual(LARGEST_BYTES);
  });

  it("the published package has the command, but no code cache, because it fits only one Node.js version", () => {
    const paths = pack().files.map(({ path }) => path);
    expect(paths).toContain("dist/cli.cjs");
    expect(paths.filter((path) => path.endsWith(".cache"))).toEqual([]);
  });

  it("an installation has at most 110 packages, not counting those that only the SDK needs", () => {
    const others = Object.keys(manifest.dependencies).filter((name) => name !== SDK);
    const own = installed(others);
    expect(own.size).toBeGreaterThan(others.length);
    expect(own.size).toBeLessThanOrEqual(MOST_PACKAGES);
    const all = installed(Object.keys(manifest.dependencies));
    expect([...all].filter((path) => !own.has(path))).toContain(`node_modules/${SDK}-linux-x64`);
  });

  it("the published package contains every file that its README and its docs link to", () => {
    const { files } = pack();
    const paths = files.map(({ path }) => path);
    const pages = paths.filter((path) => /^(README|CONTRIBUTING|docs\/.*)\.?(md)$/.test(path));
    expect(pages).toEqual(expect.arrayContaining(["README.md", "CONTRIBUTING.md", "docs/guide.md"]));
    const targets = pages.flatMap((page) =>
      [...read(page).matchAll(/(?:\]\(|<img src=")(?!https?:|#)([^)#"]+)/g)].map(([, link = ""]) =>
        posix.join(posix.dirname(page), link).replace(/\/$/, ""),
      ),
    );
    expect(targets.length).toBeGreaterThan(10);
    const missing = targets.filter((target) => !paths.some((path) => path === target || path.startsWith(`${target}/`)));
    expect(missing).toEqual([]);
  });

  it("the published package has type declarations only for the library's exports and the types that they name", () => {
    const declarations = pack().files.filter(({ path }) => path.endsWith(".d.ts"));
    const paths = declarations.map(({ path }) => path);
    expect(paths).toContain("dist/index.d.ts");
    expect(paths).toContain("dist/hosts/options.d.ts");
    expect(paths.filter((path) => /^dist\/(store\/redis|serve\/upkeep|cli)\//.test(path))).toEqual([]);
  });

  it("the published package names Linux as the only operating system", () => {
    expect(manifest.os).toEqual(["linux"]);
  });

  it("the published package needs no Kubernetes schemas at run time", () => {
    expect(Object.keys(manifest.dependencies)).not.toContain("kubernetes-models");
  });
});

describe("the lock file", () => {
  it("the lock file has the optional packages of all platforms, with os and cpu for those of GitHub", () => {
    const optional = Object.values(locked).flatMap(({ optionalDependencies = {} }) =>
      Object.entries(optionalDependencies),
    );
    expect(optional.map(([name]) => name)).toContain("@github/copilot-sdk-linux-arm64");
    for (const [name] of optional) {
      const [, entry] = Object.entries(locked).find(([path]) => path.endsWith(`node_modules/${name}`)) ?? [];
      expect(entry, name).toBeDefined();
      if (name.startsWith("@github/"))
        expect(entry, name).toMatchObject({ os: [expect.any(String)], cpu: [expect.any(String)] });
    }
  });

  it("the lock file is complete for npm ci", () => {
    const folder = mkdtempSync(join(tmpdir(), "copilotfleet-ci-"));
    onTestFinished(() => rmSync(folder, { recursive: true }));
    for (const file of ["package.json", "package-lock.json"]) copyFileSync(join(root, file), join(folder, file));
    const args = ["ci", "--dry-run", "--offline", "--ignore-scripts", "--no-audit"];
    const { status, stderr } = spawnSync("npm", args, { cwd: folder, encoding: "utf8" });
    expect(stderr).not.toContain("lock file");
    expect(status).toBe(0);
  });
});

it("the image is built from Debian 13 and Node.js 24, runs no install scripts, and lists its packages", () => {
  const dockerfile = read("Dockerfile");
  expect(dockerfile).toMatch(/^FROM node:24\.\d+\.\d+-trixie-slim@sha256:[0-9a-f]{64} AS base$/m);
  const installs = dockerfile.match(/\bnpm ci\b.*/g) ?? [];
  expect(installs).toHaveLength(2);
  for (const install of installs) expect(install).toContain(" --ignore-scripts ");
  expect(dockerfile).toContain("npm pkg delete devDependencies && npm sbom --sbom-format=cyclonedx > sbom.cdx.json");
  // The sandbox needs these programs.
  for (const program of ["bubblewrap", "util-linux"]) expect(dockerfile).toContain(` ${program}`);
});

it("the image installs from the lock file alone", () => {
  expect(read("Dockerfile")).toMatch(/^RUN .*npm ci\b/m);
  expect(read("Dockerfile")).not.toMatch(/npm install/);
});

it("the continuous integration begins with the README's test command", () => {
  const command = "npm install && npm test";
  expect(read("README.md")).toContain(`\n${command} `);
  expect(read(".ci/run")).toContain(`bash -c "${command}"`);
});
