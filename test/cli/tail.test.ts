import { appendFile, copyFile, mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { followFile, lastLines, lastLogLines } from "../../src/cli/tail.js";
import { rotateLog } from "../../src/serve/log-rotation.js";

let folder: string;
let path: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "copilotfleet-tail-"));
  path = join(folder, "log");
});
afterAll(() => rm(folder, { recursive: true, force: true }));

describe("lastLines", () => {
  it("are what splitting the whole file gives", async () => {
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

  it("are found in a file of many blocks, without a character cut in two", async () => {
    const lines = Array.from({ length: 20_000 }, (_, index) => `line ${index} \u00e9\u{1f600}`);
    await writeFile(path, `${lines.join("\n")}\n`);
    expect(lastLines(path, 10_000).lines).toEqual(lines.slice(-10_000));
    expect(lastLines(path, 1_000_000).lines).toEqual(lines);
  });

  it("of a file that is not there are none", () => {
    expect(lastLines(join(folder, "nowhere"), 10)).toEqual({ lines: [], offset: 0 });
  });
});

describe("lastLogLines", () => {
  it("go back into rotated files as far as they have to, and no further than a gap", async () => {
    await writeFile(path, "seven\n");
    await writeFile(`${path}.1`, "five\nsix\n");
    await writeFile(`${path}.2`, "four\n");
    await writeFile(`${path}.4`, "one\n");
    expect(lastLogLines(path, 2)).toEqual({ lines: ["six", "seven"], offset: 6 });
    expect(lastLogLines(path, 100)).toEqual({ lines: ["four", "five", "six", "seven"], offset: 6 });
    expect(lastLogLines(path, 0).lines).toEqual([]);
    for (const number of [1, 2, 4]) await rm(`${path}.${number}`);
  });
});

describe("followFile", () => {
  it("gives what is added, begins again when the file was cut short, and ends with its signal", async () => {
    await writeFile(path, "old\n");
    const stop = new AbortController();
    let seen = "";
    const following = (async () => {
      for await (const text of followFile(path, 4, stop.signal)) seen += text;
    })();
    const [first, second] = [Buffer.from("n\u00e9w\n").subarray(0, 2), Buffer.from("n\u00e9w\n").subarray(2)];
    await appendFile(path, first);
    await expect.poll(() => seen).toBe("n");
    await appendFile(path, second);
    await expect.poll(() => seen).toBe("n\u00e9w\n");
    await truncate(path);
    await appendFile(path, "x\n");
    await expect.poll(() => seen).toBe("n\u00e9w\nx\n");
    stop.abort();
    await following;
  });

  it("goes on over rotations without losing a line or giving one twice, whatever the server writes meanwhile", async () => {
    await writeFile(path, "");
    const stop = new AbortController();
    let seen = "";
    const following = (async () => {
      for await (const text of followFile(path, 0, stop.signal)) seen += text;
    })();
    let written = "";
    const write = async (text: string) => {
      written += text;
      await appendFile(path, text);
    };
    for (let round = 0; round < 6; round++) {
      await write(`${round} before: \u00e9 ${"x".repeat(200 * round)}\n`);
      // In some rounds the last lines before the rotation were seen, in others not.
      if (round % 2 === 0) await expect.poll(() => seen).toBe(written);
      await write(`${round} last\n`);
      expect(await rotateLog(path, { maxBytes: 0, keep: 2 })).toBeGreaterThan(0);
      // Less than what was there, more than that, or nothing.
      await write(`${round} ${"y".repeat([0, 5_000, 10][round % 3] ?? 0)}\n`);
      await expect.poll(() => seen).toBe(written);
    }
    stop.abort();
    await following;
  });

  it("is not misled by a rotated file that was copied before the log is emptied", async () => {
    await rm(`${path}.1`, { force: true });
    await writeFile(path, "one\n");
    const stop = new AbortController();
    let seen = "";
    const following = (async () => {
      for await (const text of followFile(path, 0, stop.signal)) seen += text;
    })();
    await expect.poll(() => seen).toBe("one\n");
    await copyFile(path, `${path}.1`);
    await appendFile(path, "two\n");
    await expect.poll(() => seen).toBe("one\ntwo\n");
    await appendFile(`${path}.1`, "two\nthree\n");
    await truncate(path);
    await appendFile(path, "four\n");
    await expect.poll(() => seen).toBe("one\ntwo\nthree\nfour\n");
    stop.abort();
    await following;
  });
});
