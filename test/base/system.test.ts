import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { linux, type SeenProcess, system } from "../../src/base/system/system.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { eventually } from "../fixtures/eventually.js";
import { childrenOf, killed, sleeper, statusOf } from "../fixtures/processes.js";

const VARIABLE = "COPILOTFLEET_CONTRACT";
const isRoot = process.getuid?.() === 0;

/** Starts a shell script in its own session. Everything that it starts is killed after the test. */
function shell(script: string, env: NodeJS.ProcessEnv = {}): ChildProcess & { pid: number } {
  const child = spawn("bash", ["-c", script], {
    env: { PATH: process.env.PATH, ...env },
    detached: true,
    stdio: "ignore",
  });
  const { pid } = child;
  if (pid === undefined) throw new Error("bash could not be started");
  onTestFinished(() => {
    const group = [pid, ...descendantsOf(pid)];
    for (const member of group) spawnSync("kill", ["-9", String(member)]);
  });
  return Object.assign(child, { pid });
}

function descendantsOf(pid: number): number[] {
  return childrenOf(pid).flatMap((child) => [child, ...descendantsOf(child)]);
}

function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-system-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

async function listening(host: string): Promise<{ server: Server; port: number }> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, host, resolve));
  onTestFinished(() => void server.close());
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  return { server, port: address.port };
}

const pidsOf = (found: readonly SeenProcess[]) => found.map(({ pid }) => pid).sort((a, b) => a - b);
const sorted = (pids: Iterable<number>) => [...pids].sort((a, b) => a - b);

const stranger = bundleFixture("stranger");

const { processes, files, clock } = linux;

describe(`the processes`, () => {
  it("the system finds a live process with its parent, and with the same start time in each call", () => {
    const pid = sleeper();
    const found = processes.find(pid);
    expect(found).toEqual({ pid, parent: process.pid, started: expect.stringMatching(/\S/) });
    expect(processes.find(pid)).toEqual(found);
    expect(processes.find(process.pid)).toMatchObject({ pid: process.pid, parent: process.ppid });
  });

  it("the system finds no process for a PID that no process has", () => {
    for (const pid of [-1, 0, 0.5, Number.NaN, 2 ** 22 + 1, 2 ** 40])
      expect(processes.find(pid), String(pid)).toBeNull();
  });

  it("innerPid returns the PID of a process in its own PID namespace, or null without /proc", async () => {
    expect(processes.innerPid(process.pid)).toBe(process.pid);
    expect(processes.innerPid(2 ** 22 + 1)).toBeNull();
    if (process.getuid?.() !== 0 || spawnSync("unshare", ["--version"]).error !== undefined) return;
    const unshare = shell("exec unshare --fork --pid sleep 60");
    const [inner = 0] = await eventually("the namespace", () => {
      const children = childrenOf(unshare.pid);
      return children.length > 0 ? children : null;
    });
    expect(processes.innerPid(inner)).toBe(1);
  });

  it("the system does not find a process that has ended", async () => {
    const pid = sleeper();
    await killed(pid);
    expect(processes.find(pid)).toBeNull();
    expect(processes.privateMemoryBytes(pid)).toBeNull();
    expect(processes.listensOn(pid, 80)).toBe(false);
  });

  it("the system finds a zombie neither by its PID nor in a list", async () => {
    // The shell becomes a program that never asks for the exit status of its child.
    const { pid } = shell("sleep 1000 & exec sleep 1000", { [VARIABLE]: "zombie" });
    const child = await eventually("the child", () => statusOf(pid).state !== undefined && childrenOf(pid)[0]);
    await eventually("both programs", () => processes.withVariable(VARIABLE, "zombie").length === 2);
    const started = processes.find(child)?.started ?? "";
    await eventually("the shell's second program", () => readFileSync(`/proc/${pid}/comm`, "utf8") === "sleep\n");
    process.kill(child, "SIGKILL");
    await eventually("the zombie", () => statusOf(child).state === "Z");
    expect(processes.find(child)).toBeNull();
    expect(pidsOf(processes.inSession(pid))).toEqual([pid]);
    expect(pidsOf(processes.withVariable(VARIABLE, "zombie"))).toEqual([pid]);
    expect(processes.exitOfZombie(child, started)).toEqual({ signal: "SIGKILL", code: null });
    expect(processes.exitOfZombie(child, "another start")).toBeNull();
    const [before, after] = [-1, 1].map((ticks) => String(Number(started) + ticks)) as [string, string];
    expect(processes.exitOfZombie(child, after)).toBeNull();
    expect(processes.exitOfZombie(child, after, "then or before")?.signal).toBe("SIGKILL");
    expect(processes.exitOfZombie(child, before, "then or before")).toBeNull();
    expect(processes.exitOfZombie(pid, processes.find(pid)?.started ?? "")).toBeNull();
  });

  it("the system finds the members of a process session in every process group, and no other process", async () => {
    const stranger = sleeper();
    // Job control gives the second sleep its own group.
    const { pid } = shell("sleep 1000 & set -m; (sleep 1000; true) & wait");
    const members = await eventually("three children", () => {
      const found = [pid, ...descendantsOf(pid)];
      return found.length === 4 && found.every((member) => processes.find(member) !== null) ? found : null;
    });
    expect(pidsOf(processes.inSession(pid))).toEqual(sorted(members));
    expect(pidsOf(processes.inSession(stranger))).not.toContain(pid);
  });

  it("the system finds a process by its environment, and not by the same text in its command line", async () => {
    const value = "launch-1";
    const sleeping = sleeper({ [VARIABLE]: value, ANOTHER: "x" });
    const others = [
      sleeper({ [VARIABLE]: `${value}1` }),
      sleeper({ [VARIABLE]: "launch" }),
      sleeper({ [`X_${VARIABLE}`]: value }),
      shell(`exec -a ' ${VARIABLE}=${value} X=1' sleep 1000`).pid,
    ];
    await eventually("the last program", () => readFileSync(`/proc/${others[3]}/comm`, "utf8") === "sleep\n");
    await eventually("the process", () => processes.withVariable(VARIABLE, value).length > 0);
    expect(pidsOf(processes.withVariable(VARIABLE, value))).toEqual([sleeping]);
  });

  it("hideVariables() hides the named variables and no others, or reports that it cannot", async () => {
    const { pid } = shell("read -r _ < <(sleep 100)", { SECRET: "s3cret", SECRET_2: "kept", [VARIABLE]: "kept" });
    const shown = () => processes.withEnvironment(["SECRET", "SECRET_2", VARIABLE]).find((found) => found.pid === pid);
    await eventually("the shell has its environment", () => shown()?.variables.SECRET === "s3cret");
    const hidden = processes.hideVariables(pid, ["SECRET", "NONE"]);
    expect(hidden).toBe(true);
    const left = { SECRET_2: "kept", [VARIABLE]: "kept" };
    expect(shown()?.variables).toEqual(hidden ? left : { SECRET: "s3cret", ...left });
  });

  it("withEnvironment() returns variables with any characters, even if a command line imitates ps", async () => {
    const variables = { [VARIABLE]: "/状态 文件夹/器", OTHER: "second" };
    const lines = `\n    1     0     0 S Thu Nov 26 14:32:39 2026 ${VARIABLE}=forged`;
    const env = { ...variables, TEXT: lines };
    const { pid } = shell(`exec -a '服务器 ) Z 1${lines}' sleep 1000`, env);
    await eventually("the program", () => readFileSync(`/proc/${pid}/comm`, "utf8") === "sleep\n");
    const all = processes.withEnvironment([VARIABLE, "OTHER", "NONE"]);
    expect(all.find((found) => found.pid === pid)).toEqual({ ...processes.find(pid), variables });
    expect(all.filter(({ variables: { [VARIABLE]: value } }) => value?.includes("forged"))).toEqual([]);
    expect(pidsOf(all)).not.toContain(process.pid);
  });

  it("the system finds a long-lived process even if others start and end all the time", async () => {
    const folder = temporaryFolder();
    const log = join(folder, "log");
    const held = openSync(log, "a");
    const stays = spawn("sleep", ["1000"], {
      env: { ...process.env, [VARIABLE]: "stays" },
      stdio: ["ignore", held, held],
    });
    closeSync(held);
    onTestFinished(() => void stays.kill("SIGKILL"));
    for (let i = 0; i < 2; i++) shell("while :; do sleep 0.005 > /dev/null; done");
    await eventually("the program", () => processes.withVariable(VARIABLE, "stays").length === 1);
    for (let look = 0; look < 8; look++) {
      expect(pidsOf(processes.withVariable(VARIABLE, "stays"))).toEqual([stays.pid]);
      expect(pidsOf(processes.writersOf(log))).toEqual([stays.pid]);
      expect(pidsOf(processes.inSession(stays.pid ?? 0))).toEqual([]);
    }
  });

  it("the system finds processes that have a file open for writing, but not those that only read it", async () => {
    const folder = temporaryFolder();
    const [log, link] = [join(folder, "日志 log"), join(folder, "link")];
    writeFileSync(log, "");
    symlinkSync(log, link);
    const start = (flags: string) => {
      const fd = openSync(log, flags);
      const child = spawn("sleep", ["1000"], { stdio: ["ignore", fd, "ignore"] });
      closeSync(fd);
      onTestFinished(() => void child.kill("SIGKILL"));
      return child.pid ?? 0;
    };
    const writers = [start("a"), start("w"), start("r+")];
    start("r");
    const own = openSync(log, "a");
    onTestFinished(() => closeSync(own));
    await eventually("the writers", () => processes.writersOf(log).length >= 3);
    expect(pidsOf(processes.writersOf(log))).toEqual(sorted(writers));
    expect(pidsOf(processes.writersOf(link))).toEqual(sorted(writers));
    expect(processes.writersOf(join(folder, "none"))).toEqual([]);
  });

  it.each(["127.0.0.1", "::1"])("listensOn returns whether a process listens on a port of %s", async (host) => {
    const { port } = await listening(host);
    expect(processes.listensOn(process.pid, port)).toBe(true);
    expect(processes.listensOn(process.pid, port === 65_535 ? port - 1 : port + 1)).toBe(false);
    // The sleeper is a child of the process that listens, but Node.js does not pass its sockets on to children.
    expect(processes.listensOn(sleeper(), port)).toBe(false);
    expect(processes.listensOn(1, port)).toBe(false);
  });

  it("connectedPorts returns the ports with clients, and ignores clients whose ports the caller names", async () => {
    const [quiet, busy] = [await listening("127.0.0.1"), await listening("127.0.0.1")];
    const accepted = new Promise<Socket>((resolve) => busy.server.once("connection", resolve));
    const client = connect(busy.port, "127.0.0.1");
    const server = await accepted;
    onTestFinished(() => {
      client.destroy();
      server.destroy();
    });
    const ports = new Set([quiet.port, busy.port]);
    expect(processes.connectedPorts(ports, new Set())).toEqual(new Set([busy.port]));
    expect(processes.connectedPorts(ports, new Set([server.remotePort ?? 0]))).toEqual(new Set());
    expect(processes.connectedPorts(new Set(), new Set())).toEqual(new Set());
  });

  it("the system measures the memory of a process", async () => {
    const script = "const held = Buffer.alloc(64e6, 1); console.log(held.length); setInterval(() => held, 1e6)";
    const child = spawn(process.execPath, ["-e", script], { stdio: ["ignore", "pipe", "ignore"] });
    onTestFinished(() => void child.kill("SIGKILL"));
    await new Promise((resolve) => child.stdout.once("data", resolve));
    const bytes = processes.privateMemoryBytes(child.pid ?? 0) ?? 0;
    expect(bytes).toBeGreaterThan(64e6);
    expect(bytes).toBeLessThan(400e6);
  });
});

describe(`the file systems`, () => {
  it("a folder's file system is known, and one that cannot contain the state is reported", () => {
    const folder = temporaryFolder();
    const [source, type, mountPoint] = spawnSync("findmnt", ["-no", "SOURCE,FSTYPE,TARGET", "--target", folder], {
      encoding: "utf8",
    })
      .stdout.trim()
      .split(/\s+/);
    expect(files.of(folder)).toMatchObject({ type, mountPoint });
    expect(source?.startsWith(files.of(folder).source) || files.of(folder).source === "/dev/root").toBe(true);
    expect(files.of("/proc/self")).toEqual({ type: "proc", source: "proc", mountPoint: "/proc" });
    expect(files.unfit(folder)).toBeNull();
    expect(files.unfit("/proc")).toEqual({ kind: "kernel", name: "proc" });
    expect(() => files.unfit(join(folder, "none"))).toThrow(expect.objectContaining({ code: "ENOENT" }));
  });

  it.skipIf(!isRoot)("the system reads mount points with blanks and brackets in their names", () => {
    const folder = join(temporaryFolder(), "on a (b) type c");
    mkdirSync(folder);
    expect(spawnSync("mount", ["-t", "tmpfs", "fleet", folder]).status).toBe(0);
    try {
      expect(files.of(folder)).toEqual({ type: "tmpfs", source: "fleet", mountPoint: folder });
    } finally {
      spawnSync("umount", [folder]);
    }
  });

  it("pathOf() leads to the entries of an open folder even after a link has replaced that folder", () => {
    const folder = temporaryFolder();
    for (const name of ["held", "other"]) {
      mkdirSync(join(folder, name));
      writeFileSync(join(folder, name, "entry"), name);
    }
    const fd = openSync(join(folder, "held"), "r");
    try {
      renameSync(join(folder, "held"), join(folder, "moved"));
      symlinkSync("other", join(folder, "held"));
      expect(readFileSync(join(folder, "held", "entry"), "utf8")).toBe("other");
      expect(readFileSync(`${files.pathOf(fd)}/entry`, "utf8")).toBe("held");
    } finally {
      closeSync(fd);
    }
  });
});

describe(`the clock of the machine`, () => {
  it("the clock is the same in all processes, and does not go back", () => {
    const before = clock.nowMs();
    const script = "const [s, n] = process.hrtime(); console.log(s * 1000 + n / 1e6)";
    const other = Number(spawnSync(process.execPath, ["-e", script], { encoding: "utf8" }).stdout);
    const after = clock.nowMs();
    expect(before).toBeLessThan(other);
    expect(other).toBeLessThan(after);
  });

  it("the system returns the kernel's id for the current boot of the machine", () => {
    expect(clock.bootId()).toBe(readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim());
  });
});

it("a process of another user is found, but without its variables, files and sockets", async (ctx) => {
  if (process.getuid?.() !== 0) return ctx.skip("needs root");
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
  expect(JSON.parse(stdout)).toEqual({ found, ...nothing });
});

it("the fleet refuses systems other than Linux", () => {
  expect(system("linux")).toBe(linux);
  for (const platform of ["darwin", "win32"] as const)
    expect(() => system(platform)).toThrow(
      expect.objectContaining({ code: "FLEET_PLATFORM_UNSUPPORTED", message: expect.stringContaining(platform) }),
    );
});
