import { chmodSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { nameOfSource } from "../../src/config/secret.js";
import { ProviderKey } from "../../src/providers/provider-key.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const folder = mkdtempSync(join(tmpdir(), "fleet-key-"));
const file = join(folder, "key");
const runs = join(folder, "runs");
const env = { PATH: process.env.PATH };
/** A command that counts how often it runs. */
const command = `echo run >> ${runs}; cat ${file}`;

afterAll(async () => await removeFolder(folder));
// Fake only the clock, because reading a file and running a command need real timers.
beforeEach(() => void vi.useFakeTimers({ toFake: ["performance"] }));
afterEach(() => void vi.useRealTimers());

function put(key: string): void {
  writeFileSync(file, key, { mode: 0o600 });
}

function countRuns(): number {
  return readFileSync(runs, "utf8").split("\n").length - 1;
}

async function refusal(answer: Promise<unknown>) {
  return await answer.then(
    () => expect.fail("nothing was refused"),
    (error: unknown) => error as Error & { suggestions: readonly string[] },
  );
}

it("nameOfSource does not show a token that a command contains", () => {
  expect(nameOfSource({ from: "command", command: "curl -H ghp_canary123456" })).toBe('the command "curl -H ***"');
});

describe("a key from a file", () => {
  it("a new key in the file of provider.apiKey is used a second later", async () => {
    const key = new ProviderKey({ from: "file", path: file }, env);
    put("first\n");
    expect(await key.get()).toBe("first");
    put("second\n");
    expect(await key.get()).toBe("first");
    vi.advanceTimersByTime(1_000);
    expect(await key.get()).toBe("second");
  });

  it("a key file that others can use is refused", async () => {
    put("canary");
    chmodSync(file, 0o640);
    const error = await refusal(new ProviderKey({ from: "file", path: file }, env).get());
    chmodSync(file, 0o600);
    expect(error).toMatchObject({ code: "FLEET_MODEL_UNCONFIGURED", suggestions: [`chmod 600 ${file}`] });
    expect(error.message).toContain(`The key file ${file} has mode 640`);
  });

  it.each([
    ["empty", "", "is empty"],
    ["of two lines", "canary\ncanary\n", "contains spaces"],
  ])("a key file (%s) is refused, and its content is not shown", async (_, content, fault) => {
    put(content);
    const error = await refusal(new ProviderKey({ from: "file", path: file }, env).get());
    expect(error.message).toContain(`The key from the file "${file}" ${fault}`);
    expect(JSON.stringify([error.message, error.suggestions, error.stack])).not.toContain("canary");
  });
});

describe("a key from a command", () => {
  beforeEach(() => writeFileSync(runs, ""));

  it("the command of provider.apiKey runs once in five minutes for all requests", async () => {
    const key = new ProviderKey({ from: "command", command }, env);
    put("first");
    expect(await Promise.all([key.get(), key.get()])).toEqual(["first", "first"]);
    expect(countRuns()).toBe(1);
    put("second");
    vi.advanceTimersByTime(299_999);
    expect(await key.get()).toBe("first");
    vi.advanceTimersByTime(1);
    expect(await key.get()).toBe("second");
    expect(countRuns()).toBe(2);
  });

  it("the last key stays in use while the command of provider.apiKey fails", async () => {
    const key = new ProviderKey({ from: "command", command }, env);
    put("first");
    await key.get();
    put("");
    vi.advanceTimersByTime(300_000);
    expect(await key.get()).toBe("first");
    put("second");
    expect(await key.get()).toBe("second");
  });

  it("when the service refuses the key, the key command runs again, but at most once in 5 s", async () => {
    const key = new ProviderKey({ from: "command", command }, env);
    put("bad");
    await key.get();
    expect(await Promise.all([key.getAfterRefusal("bad"), key.getAfterRefusal("bad")])).toEqual(["bad", "bad"]);
    expect(await key.getAfterRefusal("bad")).toBe("bad");
    expect(countRuns()).toBe(2);
    put("good");
    vi.advanceTimersByTime(5_000);
    expect(await key.getAfterRefusal("bad")).toBe("good");
    expect(await key.getAfterRefusal("bad")).toBe("good");
    expect(countRuns()).toBe(3);
  });
});
