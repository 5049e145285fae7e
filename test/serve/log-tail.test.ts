import { statSync } from "node:fs";
import { appendFile, copyFile, mkdtemp, rm, truncate, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it, onTestFinished } from "vitest";
import { awaitMore, followLog, type LogWish, lastLogLines, rotateLog } from "../../src/serve/logs.js";

let folder: string;
let path: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "copilotfleet-tail-"));
  path = join(folder, "log");
});
afterEach(() => rm(folder, { recursive: true, force: true }));

/** The last lines of the log, at most `lines`, and the offset of the end of the log. */
async function lastLines(at: string, lines: number) {
  const end = await lastLogLines(at, { lines });
  return { lines: end.lines, offset: end.at.offset };
}

describe("lastLogLines", () => {
  it("lastLogLines returns the same lines as splitting the whole file", async () => {
    const line = fc.string({ unit: fc.constantFrom("a", "\u00e9", "\u{1f600}", " "), maxLength: 30 });
    await fc.assert(
      fc.asyncProperty(fc.array(line, { maxLength: 30 }), fc.nat(35), fc.boolean(), async (lines, count, ended) => {
        const text = lines.join("\n") + (ended && lines.length > 0 ? "\n" : "");
        await writeFile(path, text);
        const all = text.split("\n");
        if (all.at(-1) === "") all.pop();
        expect(await lastLines(path, count)).toEqual({
          lines: count === 0 ? [] : all.slice(-count),
          offset: Buffer.byteLength(text),
        });
      }),
      { numRuns: 50 },
    );
  });

  it("lastLogLines reads a file of many blocks without cutting a character in two", async () => {
    const lines = Array.from({ length: 20_000 }, (_, index) => `line ${index} \u00e9\u{1f600}`);
    await writeFile(path, `${lines.join("\n")}\n`);
    expect((await lastLines(path, 10_000)).lines).toEqual(lines.slice(-10_000));
    expect((await lastLines(path, 1_000_000)).lines).toEqual(lines);
  });

  it.each(["", "the last line\n"])(
    "lastLogLines and awaitMore read only the end of a log of 8 GB that an agent made: %j",
    async (end) => {
      await writeFile(path, "");
      await truncate(path, 8 * 1024 ** 3);
      await appendFile(path, end === "" ? "" : `\n${end}`);
      const at = { offset: 0, rotated: null };
      expect((await lastLines(path, 10)).lines).toEqual(end === "" ? [] : ["the last line"]);
      expect((await awaitMore(path, at, AbortSignal.timeout(10))).bytes.length).toBeLessThan(8 * 1024 ** 2);
    },
  );

  it("lastLogLines returns no lines for a missing file", async () => {
    expect(await lastLines(join(folder, "nowhere"), 10)).toEqual({ lines: [], offset: 0 });
  });
});

describe("lastLogLines over rotated files", () => {
  it("lastLogLines reads as many rotated files as needed, but stops at the first missing file", async () => {
    await writeFile(path, "seven\n");
    await writeFile(`${path}.1`, "five\nsix\n");
    await writeFile(`${path}.2`, "four\n");
    await writeFile(`${path}.4`, "one\n");
    const at = { offset: 6, rotated: statSync(`${path}.1`).ino };
    expect(await lastLogLines(path, { lines: 2 })).toEqual({ lines: ["six", "seven"], at });
    expect(await lastLogLines(path, { lines: 100 })).toEqual({ lines: ["four", "five", "six", "seven"], at });
    expect((await lastLogLines(path, { lines: 0 })).lines).toEqual([]);
  });
});

describe("lastLogLines by launch and time", () => {
  const time = (minute: number) => `2026-01-01T00:${String(minute).padStart(2, "0")}:00.000Z`;
  const note = (minute: number, text: string) => `${time(minute)} [copilotfleet] ${text}`;
  const first = [note(1, "Launch on port 1"), "listening", "first panic", note(3, "Process 1 ended")];
  const second = [note(5, "Launch on port 1"), "listening", note(6, "Process 2 answers"), "second says"];
  const third = [note(20, "Launch on port 1"), "third listening"];

  /** Writes the lines to two rotated files and the log, and sets the log's time to minute 21. */
  async function write(...files: (readonly string[])[]): Promise<void> {
    for (const [index, lines] of files.entries()) {
      const number = files.length - 1 - index;
      await writeFile(number === 0 ? path : `${path}.${number}`, lines.map((line) => `${line}\n`).join(""));
    }
    await utimes(path, new Date(time(21)), new Date(time(21)));
  }

  const read = async (wish: Partial<LogWish>) => (await lastLogLines(path, { lines: 100, ...wish })).lines;

  it("lastLogLines with the option previous returns the launch before the last one, even from rotated files", async () => {
    await write(first, second.slice(0, 2), [...second.slice(2), ...third]);
    expect(await read({})).toEqual([...first, ...second, ...third]);
    expect(await read({ previous: true })).toEqual(second);
    expect(await read({ previous: true, lines: 2 })).toEqual(second.slice(-2));
  });

  it("lastLogLines with the option previous returns nothing when the log has only one launch", async () => {
    await write(third);
    expect(await read({ previous: true })).toEqual([]);
  });

  it("lastLogLines with the option sinceMs keeps each line that may have been written since that time", async () => {
    await write(first, second.slice(0, 2), [...second.slice(2), ...third]);
    const since = (minute: number) => read({ sinceMs: Date.parse(time(minute)) });
    expect(await since(0)).toEqual([...first, ...second, ...third]);
    // The panic was logged between the launch (minute 1) and the end (minute 3), so it may have come after minute 2.
    expect(await since(2)).toEqual([...first.slice(1), ...second, ...third]);
    expect(await since(4)).toEqual([...second, ...third]);
    expect(await since(10)).toEqual(["second says", ...third]);
    expect(await since(21)).toEqual(["third listening"]);
    expect(await since(22)).toEqual([]);
  });

  it("lastLogLines with the option sinceMs ignores the time in a line that the fleet did not write", async () => {
    const foreign = ["2001-01-01T00:00:00.000Z an old line of another log", "[2001-01-01T00:00:00Z] the same"];
    const fourth = [note(20, "Launch on port 1"), "before", ...foreign, "after"];
    await write(first, fourth);
    expect(await read({ sinceMs: Date.parse(time(10)) })).toEqual(fourth);
  });
});

/** Collects everything that is appended after `offset`. */
function follow(offset: number, signal: AbortSignal) {
  const decoder = new TextDecoder();
  const seen = { text: "" };
  const done = (async () => {
    for await (const bytes of followLog(path, { offset, rotated: null }, signal)) {
      seen.text += decoder.decode(bytes, { stream: true });
    }
  })();
  return { seen, done };
}

describe("followLog", () => {
  it("followLog yields appended text, starts again after a truncation, and ends with its signal", async () => {
    await writeFile(path, "old\n");
    const stop = new AbortController();
    const { seen, done } = follow(4, stop.signal);
    const [first, second] = [Buffer.from("n\u00e9w\n").subarray(0, 2), Buffer.from("n\u00e9w\n").subarray(2)];
    await appendFile(path, first);
    await appendFile(path, second);
    await expect.poll(() => seen.text).toBe("n\u00e9w\n");
    await truncate(path);
    await appendFile(path, "x\n");
    await expect.poll(() => seen.text).toBe("n\u00e9w\nx\n");
    stop.abort();
    await done;
  });

  it("followLog neither loses nor repeats a line across rotations, whatever the server writes in between", async () => {
    await writeFile(path, "");
    const stop = new AbortController();
    const { seen, done } = follow(0, stop.signal);
    let written = "";
    const write = async (text: string) => {
      written += text;
      await appendFile(path, text);
    };
    for (let round = 0; round < 6; round++) {
      await write(`${round} before: \u00e9 ${"x".repeat(200 * round)}\n`);
      // In every second round, the follower sees the round's first line before the rotation.
      if (round % 2 === 0) await expect.poll(() => seen.text).toBe(written);
      await write(`${round} last\n`);
      expect(await rotateLog(path, { maxBytes: 0, keep: 2 })).toBeGreaterThan(0);
      // The new text is shorter or longer than the rotated text, or almost empty.
      await write(`${round} ${"y".repeat([0, 5_000, 10][round % 3] ?? 0)}\n`);
      await expect.poll(() => seen.text).toBe(written);
    }
    stop.abort();
    await done;
  });

  it("followLog of eleven logs with one signal causes no warning about too many listeners", async () => {
    const warnings: Error[] = [];
    const note = (warning: Error) => void warnings.push(warning);
    process.on("warning", note);
    onTestFinished(() => void process.off("warning", note));
    await writeFile(path, "one\n");
    const stop = new AbortController();
    const followers = Array.from({ length: 11 }, () => follow(0, stop.signal));
    await expect.poll(() => followers.map(({ seen }) => seen.text)).toEqual(followers.map(() => "one\n"));
    await appendFile(path, "two\n");
    await expect.poll(() => followers.map(({ seen }) => seen.text)).toEqual(followers.map(() => "one\ntwo\n"));
    stop.abort();
    await Promise.all(followers.map(({ done }) => done));
    expect(warnings).toEqual([]);
  });

  it("followLog repeats no line while a rotation has copied the log but has not emptied it", async () => {
    await writeFile(path, "one\n");
    const stop = new AbortController();
    const { seen, done } = follow(0, stop.signal);
    await expect.poll(() => seen.text).toBe("one\n");
    await copyFile(path, `${path}.1`);
    await appendFile(path, "two\n");
    await expect.poll(() => seen.text).toBe("one\ntwo\n");
    await appendFile(`${path}.1`, "two\nthree\n");
    await truncate(path);
    await appendFile(path, "four\n");
    await expect.poll(() => seen.text).toBe("one\ntwo\nthree\nfour\n");
    stop.abort();
    await done;
  });
});

describe("awaitMore", () => {
  it("awaitMore returns a line only once the line is complete or very long", async () => {
    await writeFile(path, "one\ntwo, half of it");
    const first = await awaitMore(path, { offset: 0, rotated: null }, new AbortController().signal);
    expect(first).toEqual({ bytes: Buffer.from("one\n"), at: { offset: 4, rotated: null } });
    expect(await awaitMore(path, first.at, AbortSignal.abort())).toMatchObject({
      bytes: Buffer.alloc(0),
      at: first.at,
    });
    await appendFile(path, " and the rest\n");
    const second = await awaitMore(path, first.at, new AbortController().signal);
    expect(second.bytes.toString()).toBe("two, half of it and the rest\n");
    const long = "x".repeat(2_000_000);
    await appendFile(path, long);
    expect((await awaitMore(path, second.at, new AbortController().signal)).bytes.toString()).toBe(long);
  });

  it("awaitMore returns existing lines at once, otherwise waits for a line, and returns nothing if its signal aborts", async () => {
    await writeFile(path, "one\n");
    const start = { offset: 0, rotated: null };
    const first = await awaitMore(path, start, new AbortController().signal);
    expect(first).toEqual({ bytes: Buffer.from("one\n"), at: { offset: 4, rotated: null } });
    const more = awaitMore(path, first.at, new AbortController().signal);
    await appendFile(path, "two\n");
    expect((await more).bytes.toString()).toBe("two\n");
    expect(await awaitMore(path, { offset: 8, rotated: null }, AbortSignal.abort())).toEqual({
      bytes: Buffer.alloc(0),
      at: { offset: 8, rotated: null },
    });
  });
});
