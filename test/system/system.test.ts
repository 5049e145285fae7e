import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, existsSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { linux } from "../../src/system/linux/linux.js";
import { posix } from "../../src/system/posix/posix.js";
import { choose } from "../../src/system/system.js";
import { describeSystem } from "../contract/system.contract.js";
import { bundleFixture } from "../fixtures/bundle.js";

const reuser = bundleFixture("pid-reuser");
const stranger = bundleFixture("stranger");
const without = bundleFixture("missing-programs");

describeSystem("/proc", linux, { exact: true });

const missing = ["ps", "lsof", "sysctl", "df", "mount"].filter(
  (program) => spawnSync(program, ["-v"]).error !== undefined,
);
if (missing.length > 0) console.warn(`the second implementation is not tested without ${missing.join(", ")}`);
else describeSystem("ps and lsof", posix("linux"), { exact: false });

it("a process that has the PID of an earlier process has another start time", (ctx) => {
  const inside = ["-pf", "--mount-proc", "--kill-child"];
  const writable = ["sh", "-c", "echo 100 > /proc/sys/kernel/ns_last_pid"];
  if (spawnSync("unshare", [...inside, ...writable]).status !== 0 || missing.length > 0)
    return ctx.skip("needs root, unshare and a kernel with ns_last_pid");
  const { stdout, stderr } = spawnSync("unshare", [...inside, process.execPath, reuser], { encoding: "utf8" });
  expect(stderr).toBe("");
  const { pid, before, between, after } = JSON.parse(stdout);
  expect(between).toEqual({ linux: null, posix: null });
  for (const name of ["linux", "posix"]) {
    expect([before[name].pid, after[name].pid], name).toEqual([pid, pid]);
    expect(after[name].started, name).not.toBe(before[name].started);
  }
});

it("a process of another user is found, but without its variables, files and sockets", async (ctx) => {
  if (process.getuid?.() !== 0 || missing.length > 0) return ctx.skip("needs root");
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-stranger-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  chmodSync(folder, 0o755);
  const file = join(folder, "log");
  const script = `
    require("node:fs").openSync(${JSON.stringify(file)}, "a", 0o644);
    const server = require("node:net").createServer().listen(0, "127.0.0.1", () => console.log(server.address().port));`;
  const variable = { COPILOTFLEET_CONTRACT: "stranger" };
  const child = spawn(process.execPath, ["-e", script], { env: variable, stdio: ["ignore", "pipe", "inherit"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  const [port] = (await once(child.stdout, "data")) as [Buffer];
  const args = [child.pid, String(port).trim(), file, ...Object.entries(variable).flat()].map(String);
  const { stdout, stderr } = spawnSync(process.execPath, [stranger, ...args], { encoding: "utf8" });
  expect(stderr).toBe("");
  const found = { pid: child.pid, parent: process.pid, started: expect.any(String) };
  const nothing = { withVariable: [], variables: [], writers: [], listens: false };
  expect(JSON.parse(stdout)).toEqual([
    { found, ...nothing },
    { found, ...nothing },
  ]);
});

it.skipIf(missing.length > 0)(
  "questions about processes throw FLEET_PROCESSES_UNREADABLE if ps and lsof fail or are killed",
  () => {
    const { PATH } = process.env;
    const folder = mkdtempSync(join(tmpdir(), "copilotfleet-no-ps-"));
    onTestFinished(() => {
      process.env.PATH = PATH;
      rmSync(folder, { recursive: true });
    });
    const { processes } = posix("linux");
    for (const body of ["echo broken >&2; exit 1", "exit 3", "kill -9 $$"]) {
      for (const program of ["ps", "lsof"])
        writeFileSync(join(folder, program), `#!/bin/sh\n${body}\n`, { mode: 0o755 });
      process.env.PATH = `${folder}:${PATH}`;
      const unreadable = expect.objectContaining({ code: "FLEET_PROCESSES_UNREADABLE" });
      expect(() => processes.find(process.pid), body).toThrow(unreadable);
      expect(() => processes.withVariable("A", "b"), body).toThrow(unreadable);
      expect(() => processes.listensOn(process.pid, 80), body).toThrow(unreadable);
    }
  },
);

it("without ps and lsof, questions about processes fail with the advice to install the missing program", (ctx) => {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-nothing-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  writeFileSync(join(folder, "node"), "");
  // The fleet always looks in /usr/bin, too. So run the program in a namespace where /usr/bin has only Node.js.
  const script = 'mount --bind "$1" "$0/node" && mount --rbind "$0" /usr/bin && exec /usr/bin/node "$2"';
  const args = ["-m", "sh", "-c", script, folder, process.execPath, without];
  const isElsewhere = ["/bin", "/usr/sbin", "/sbin"].some(
    (at) => realpathSync(at) !== "/usr/bin" && ["ps", "lsof"].some((program) => existsSync(join(at, program))),
  );
  if (isElsewhere || spawnSync("unshare", ["-m", "true"]).status !== 0)
    return ctx.skip("needs root, unshare, and ps and lsof in no folder but /usr/bin");
  const { stdout, stderr } = spawnSync("unshare", args, { encoding: "utf8" });
  expect(stderr).toBe("");
  const error = (program: string) => ({
    code: "FLEET_PROCESSES_UNREADABLE",
    message: `The processes of this machine cannot be listed, because there is no program ${program}.`,
    suggestions: [`Install ${program}.`],
  });
  expect(JSON.parse(stdout)).toEqual([error("ps"), error("ps"), error("lsof")]);
});

it("the platform chooses the implementation of the system, and COPILOTFLEET_SYSTEM=posix chooses ps and lsof", () => {
  expect(choose(undefined, "linux")).toBe(linux);
  expect(choose("", "linux")).toBe(linux);
  for (const platform of ["darwin", "win32"] as const)
    expect(() => choose(undefined, platform)).toThrow(
      expect.objectContaining({ code: "FLEET_PLATFORM_UNSUPPORTED", message: expect.stringContaining(platform) }),
    );
  expect(choose("posix", "darwin").processes.namespace()).toBe("none");
  expect(() => choose("proc", "linux")).toThrow(
    expect.objectContaining({
      code: "FLEET_CONFIG_INVALID",
      message: 'COPILOTFLEET_SYSTEM is "proc". Allowed: "posix".',
      suggestions: ["unset COPILOTFLEET_SYSTEM"],
    }),
  );
  expect(() => choose("posix", "darwin").files.pathOf(3)).toThrow(
    expect.objectContaining({ code: "FLEET_PLATFORM_UNSUPPORTED" }),
  );
});
