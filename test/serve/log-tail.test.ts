import { statSync } from "node:fs";
import { appendFile, copyFile, mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { rotateLog } from "../../src/serve/logs/log-rotation.js";
import { awaitMore, followLog, lastLines, lastLogLines } from "../../src/serve/logs/log-tail.js";

let folder: string;
let path: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "copilotfleet-tail-"));
  path = join(folder, "log");
});
afterAll(() => rm(folder, { recursive: true, force: true }));

describe("lastLines", () => {
  it("lastLines returns the same lines as splitting the whole file", async () => {
    const line = fc.string({ unit: fc.constantFrom("a", "\u00e9", "\u{1f600}", " "), maxLength: 30 });
    await fc.assert(
      fc.asyncProperty(fc.array(line, { maxLength: 30 }), fc.nat(35), fc.boolean(), async (lines, count, ended) => {
        const text = lines.join("\n") + (ended && lines.length > 0 ? "\n" : "");
        await writeFile(path, text);
        const all = text.split("\n");
        if (all.at(-1) === "") all.pop();
        expect(lastLines(path, count)).toEqual({
          lines: count === 0 ? [] : all.slice(-count),
          offset: Buffer.byteLength(text),
        });
      }),
      { numRuns: 50 },
    );
  });

  it("lastLines reads a file of many blocks without cutting a character in two", async () => {
    const lines = Array.from({ length: 20_000 }, (_, index) => `line ${index} \u00e9\u{1f600}`);
    await writeFile(path, `${lines.join("\n")}\n`);
    expect(lastLines(path, 10_000).lines).toEqual(lines.slice(-10_000));
    expect(lastLines(path, 1_000_000).lines).toEqual(lines);
  });

  it("lastLines returns no lines for a missing file", () => {
    expect(lastLines(join(folder, "nowhere"), 10)).toEqual({ lines: [], offset: 0 });
  });
});

describe("lastLogLines", () => {
  it("lastLogLines reads rotated files as far back as needed, but not past a missing one", async () => {
    await writeFile(path, "seven\n");
    await writeFile(`${path}.1`, "five\nsix\n");
    await writeFile(`${path}.2`, "four\n");
    await writeFile(`${path}.4`, "one\n");
    const at = { offset: 6, rotated: statSync(`${path}.1`).ino };
    expect(lastLogLines(path, 2)).toEqual({ lines: ["six", "seven"], at });
    expect(lastLogLines(path, 100)).toEqual({ lines: ["four", "five", "six", "seven"], at });
    expect(lastLogLines(path, 0).lines).toEqual([]);
    for (const number of [1, 2, 4]) await rm(`${path}.${number}`);
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
    await expect.poll(() => seen.text).toBe("n");
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
      // In every second round the follower sees the first line before the rotation.
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

  it("followLog repeats no line while a rotation has copied the log but has not emptied it", async () => {
    await rm(`${path}.1`, { force: true });
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
  it("awaitMore returns present bytes at once, waits for more, and returns nothing when its signal aborts", async () => {
    await rm(`${path}.1`, { force: true });
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
