import { mkdirSync, mkdtempSync, realpathSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { contains, serverPaths } from "../../src/sandbox/paths.js";
import { removeFolder } from "../fixtures/remove-folder.js";

/** A folder with a program, a library and a state folder beside each other, as in an installation below `/opt`. */
function installation(): string {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), "copilotfleet-paths-")));
  onTestFinished(() => removeFolder(folder));
  for (const name of ["library", "state/home"]) mkdirSync(join(folder, name), { recursive: true });
  writeFileSync(join(folder, "program"), "");
  return folder;
}

it("if the runtime's folder contains the fleet's state, a server can read everything else in that folder", () => {
  const folder = installation();
  symlinkSync(join(folder, "state"), join(folder, "link"));
  const home = join(folder, "state", "home");
  const { read, write } = serverPaths({
    hidden: [join(folder, "state")],
    runtimePath: join(folder, "program"),
    own: [home],
    read: [],
    write: [],
  });
  expect(read.filter((path) => path.startsWith(folder)).sort()).toEqual([
    join(folder, "library"),
    join(folder, "program"),
  ]);
  expect(write).toEqual([home]);
});

it("a server reads neither the secrets of the machine in /etc nor the homes of people", () => {
  const { read } = serverPaths({ hidden: [], runtimePath: "/usr/bin/true", own: [], read: [], write: [] });
  for (const secret of [
    "/etc/shadow",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/copilotfleet",
    "/home",
    "/root",
    "/run",
    "/tmp",
    "/var",
  ]) {
    expect(
      read
        .filter((path) => contains(path, secret) || contains(secret, path))
        .filter((path) => !path.startsWith("/run/systemd")),
    ).toEqual([]);
  }
});

it("serverPaths leaves out a path that does not exist", () => {
  const { write } = serverPaths({
    hidden: [],
    runtimePath: "/usr/bin/true",
    own: ["/nowhere"],
    read: [],
    write: ["/nowhere/at/all"],
  });
  expect(write).toEqual([]);
});
