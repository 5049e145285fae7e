import { appendFile, mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { awaitMore, followLog, lastLogLines, rotateLog } from "../../src/serve/logs.js";

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
});
