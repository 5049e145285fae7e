import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  appendFileSync,
  closeSync,
  lstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { beforeEach, describe, expect, it, onTestFinished } from "vitest";
import { rotateLog } from "../../src/serve/logs.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { attach, straceProblem } from "../fixtures/store/store-strace.js";

let folder: string;
let log: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "copilotfleet-rotation-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  log = join(folder, "server.log");
});

/** The content of each file in the folder, by its name. */
function contents(): Record<string, string> {
  return Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), "utf8")]));
}

describe("rotateLog", () => {
  it("rotateLog keeps the newest files in order over any number of rotations, even if rotated files vanish", async () => {
    const round = fc.record({ keep: fc.integer({ min: 1, max: 4 }), lost: fc.option(fc.integer({ min: 1, max: 4 })) });
    await fc.assert(
      fc.asyncProperty(fc.array(round, { maxLength: 10 }), async (rounds) => {
        for (const name of readdirSync(folder)) rmSync(join(folder, name));
        for (const [index, { keep, lost }] of rounds.entries()) {
          if (lost !== null) rmSync(`${log}.${lost}`, { force: true });
          writeFileSync(log, String(index).padStart(3));
          await rotateLog(log, { maxBytes: 0, keep });
          const { "server.log": rest, ...rotated } = contents();
          const numbers = Object.keys(rotated).map((name) => Number(name.slice("server.log.".length)));
          expect(rest).toBe("");
          expect(Math.max(...numbers)).toBeLessThanOrEqual(keep);
          expect(rotated["server.log.1"]).toBe(String(index).padStart(3));
          const inOrder = numbers.sort((a, b) => a - b).map((number) => Number(rotated[`server.log.${number}`]));
          expect(inOrder).toEqual(inOrder.toSorted((a, b) => b - a));
        }
      }),
      { numRuns: 50 },
    );
  });

  it("rotateLog keeps the log's modification time and touches no foreign file", async () => {
    writeFileSync(log, "abc");
    const then = new Date("2026-01-02T03:04:05Z");
    utimesSync(log, then, then);
    const others = ["server.log.old", "server.log.01", "server.log.1.gz", "other.log.1", ".server.log.x.tmp"];
    for (const name of others) writeFileSync(join(folder, name), name);
    await rotateLog(log, { maxBytes: 1, keep: 1 });
    expect(statSync(log).mtime).toEqual(then);
    expect(readdirSync(folder).sort()).toEqual([...others, "server.log", "server.log.1"].sort());
  });

  it("rotateLog follows no symbolic link, and refuses a log that is a link or a pipe", async () => {
    const victim = join(folder, "victim");
    writeFileSync(victim, "precious");
    symlinkSync(victim, log);
    await expect(rotateLog(log, { maxBytes: 1, keep: 2 })).rejects.toMatchObject({ code: "FLEET_STATE_UNSAFE" });
    rmSync(log);
    writeFileSync(log, "abc");
    symlinkSync(victim, `${log}.1`);
    symlinkSync(victim, `${log}.2`);
    await rotateLog(log, { maxBytes: 1, keep: 2 });
    expect(readFileSync(victim, "utf8")).toBe("precious");
    expect(lstatSync(`${log}.1`).isFile()).toBe(true);
    expect(lstatSync(`${log}.2`).isSymbolicLink()).toBe(true);
    rmSync(log);
    expect(spawnSync("mkfifo", [log]).status).toBe(0);
    await expect(rotateLog(log, { maxBytes: 0, keep: 2 })).rejects.toMatchObject({ code: "FLEET_STATE_UNSAFE" });
  });

  it("rotateLog loses almost none of the lines that a server writes during the rotation, and keeps their order", async () => {
    const out = openSync(log, "a");
    const program = fileURLToPath(new URL("../fixtures/programs/log-writer.mjs", import.meta.url));
    const writer = spawn(process.execPath, [program, "120"], { stdio: ["pipe", out, "pipe"] });
    closeSync(out);
    onTestFinished(() => void writer.kill("SIGKILL"));
    let count = "";
    writer.stderr?.on("data", (text) => (count += String(text)));
    const begun = performance.now();
    let rotations = 0;
    // Continue after two seconds if there were too few rotations, because on a busy machine the writer may begin late.
    while (performance.now() - begun < 2_000 || rotations <= 10) {
      if ((await rotateLog(log, { maxBytes: 20_000, keep: 1_000 })) > 0) rotations++;
    }
    const ended = once(writer, "close");
    writer.stdin?.end();
    await ended;
    const perMs = Number(count) / (performance.now() - begun);
    const texts = [];
    for (let number = rotations; number >= 1; number--) texts.push(readFileSync(`${log}.${number}`, "utf8"));
    const all = [...texts, readFileSync(log, "utf8")].join("");
    // A line of which only a part is left counts as lost.
    const lines = all.split("\n").filter((line) => /^\d+\.+$/.test(line) && line.length === 120);
    const numbers = lines.map(Number.parseFloat);
    expect(all).not.toContain("\0");
    expect(rotations).toBeGreaterThan(10);
    expect(numbers).toEqual([...new Set(numbers)].toSorted((a, b) => a - b));
    // We check the median, because a busy machine may suspend the test between two system calls of a rotation.
    const gaps = numbers.map((number, index) => number - (numbers[index - 1] ?? -1) - 1).filter((gap) => gap > 0);
    expect(gaps.length).toBeLessThanOrEqual(rotations);
    const lostMs = [...gaps, ...Array.from({ length: rotations - gaps.length }, () => 0)].map((gap) => gap / perMs);
    const medianMs = lostMs.toSorted((a, b) => a - b)[Math.floor(rotations / 2)] ?? 0;
    const worstMs = Math.max(...lostMs);
    console.log(
      `${rotations} rotations under ${perMs.toFixed(0)} lines a ms: lost of each ${medianMs.toFixed(2)} ms (median), ` +
        `at most ${worstMs.toFixed(1)} ms`,
    );
    expect(medianMs).toBeLessThan(0.5);
  });
});

const diskProblem = (() => {
  const script = "mount -t tmpfs -o size=64k tmpfs /tmp";
  const { error, status, stderr } = spawnSync("unshare", ["--map-root-user", "--mount", "sh", "-ec", script]);
  if (error) return "unshare is not installed";
  return status === 0 ? undefined : `nothing can be mounted here: ${String(stderr).trim()}`;
})();
if (diskProblem !== undefined) console.log(`a full disk for logs: skipped, since ${diskProblem}`);
const filler = bundleFixture("log-filler");

it.skipIf(diskProblem !== undefined)(
  "rotateLog on a full disk deletes the oldest log file first, and changes nothing if that does not help",
  () => {
    const script = 'mount -t tmpfs -o size=1m,mode=0700 tmpfs "$1"; exec "$2" "$3" "$1"';
    const argv = ["--map-root-user", "--mount", "sh", "-ec", script, "sh", folder, process.execPath, filler];
    const { stdout, stderr, status } = spawnSync("unshare", argv, { encoding: "utf8" });
    expect({ stderr, status }).toEqual({ stderr: "", status: 0 });
    expect(JSON.parse(stdout)).toEqual({
      helped: {
        outcome: 300 * 1024,
        files: { "server.log": "0", "server.log.1": "L300", "server.log.2": "1200", "server.log.3": "2200" },
      },
      full: {
        outcome: { code: "FLEET_STATE_UNWRITABLE", message: expect.stringContaining("ENOSPC") },
        files: { "server.log": "M300", "server.log.1": "L300" },
      },
      again: {
        outcome: 300 * 1024,
        files: { "server.log": "0", "server.log.1": "M300", "server.log.2": "L300" },
      },
    });
  },
);

const traceProblem = straceProblem();
if (traceProblem !== undefined) console.log(`killed rotations: skipped, since ${traceProblem}`);
const rotator = bundleFixture("log-rotator");

/** Starts a process that rotates on request. */
async function startRotator() {
  const child = spawn(process.execPath, [rotator, log, "1", "3"], {
    stdio: ["pipe", "pipe", "inherit"],
    env: { ...process.env, UV_THREADPOOL_SIZE: "1" },
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  child.stdin.on("error", () => "it was killed");
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  const answer = async () => ((await lines.next()).value as string | undefined) ?? "killed";
  await answer();
  const rotate = async () => {
    child.stdin.write("\n");
    return await answer();
  };
  return { pid: child.pid ?? 0, rotate, kill: () => child.kill("SIGKILL") };
}

describe.skipIf(traceProblem !== undefined)("system calls of a rotation", () => {
  const texts = {
    "server.log": "L".repeat(2_500_000),
    "server.log.1": "1111",
    "server.log.2": "22",
    "server.log.3": "3",
  };
  const write = () => {
    for (const name of readdirSync(folder)) rmSync(join(folder, name));
    for (const [name, text] of Object.entries(texts)) writeFileSync(join(folder, name), text);
  };

  it("a log rotation that is killed at any system call leaves complete files and loses no line", async () => {
    let kills = 0;
    for (const call of ["openat", "pread64", "pwrite64", "fsync", "rename", "unlink", "utimensat", "close"]) {
      for (let when = 1; ; when++) {
        write();
        const rotator = await startRotator();
        const detach = await attach(rotator.pid, join(tmpdir(), `${basename(folder)}.trace`), [
          `trace=${call}`,
          `inject=${call}:signal=SIGKILL:when=${when}`,
        ]);
        const outcome = await rotator.rotate();
        rotator.kill();
        await detach();
        if (outcome !== "killed") break;
        kills++;
        const left = contents();
        const rotated = Object.entries(left).filter(([name]) => /^server\.log\.\d+$/.test(name));
        const whole = new Set(Object.values(texts));
        for (const [name, text] of rotated) expect(whole.has(text), `${call} ${when}: ${name}`).toBe(true);
        expect(left["server.log"] === texts["server.log"] || left["server.log.1"] === texts["server.log"]).toBe(true);
        expect(rotated.map(([, text]) => text)).toEqual(expect.arrayContaining(["1111", "22"]));
        await rotateLog(log, { maxBytes: 1, keep: 3 });
        const after = contents();
        expect(after).toMatchObject({ "server.log": "", "server.log.1": texts["server.log"] });
        expect(Object.keys(after).filter((name) => !/^server\.log(\.[123])?$/.test(name))).toEqual([]);
      }
    }
    rmSync(join(tmpdir(), `${basename(folder)}.trace`), { force: true });
    expect(kills).toBeGreaterThan(15);
  });

  it("a log rotation never opens the log for writing, because a log's writer counts as its server", async () => {
    write();
    const rotator = await startRotator();
    const detach = await attach(rotator.pid, join(tmpdir(), `${basename(folder)}.trace`), ["trace=openat"]);
    expect(await rotator.rotate()).toBe("2500000");
    const opened = [...(await detach()).matchAll(/"[^"]*\/server\.log", (\S+)\)/g)].map(([, flags]) => flags);
    rmSync(join(tmpdir(), `${basename(folder)}.trace`), { force: true });
    expect(opened.length).toBe(2);
    for (const flags of opened) expect(flags).toMatch(/^O_RDONLY\b/);
  });
});

it("after a rotation, a server appends at the beginning of the emptied log, not at its old offset", async () => {
  const server = openSync(log, "a");
  onTestFinished(() => closeSync(server));
  appendFileSync(server, "first\n");
  await rotateLog(log, { maxBytes: 1, keep: 1 });
  appendFileSync(server, "second\n");
  expect(contents()).toEqual({ "server.log": "second\n", "server.log.1": "first\n" });
});
