import { appendFile, mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { followFile, lastLines } from "../../src/cli/tail.js";

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
});
