import { mkdtempSync, readdirSync, realpathSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { InputHistory } from "../../../src/cli/chat/input-history.js";
import { removeFolder } from "../../fixtures/remove-folder.js";

let root: string;
beforeEach(() => {
  root = join(realpathSync(mkdtempSync(join(tmpdir(), "copilotfleet-history-"))), "state");
});
afterEach(async () => await removeFolder(join(root, "..")));

const file = () => join(root, "chat", readdirSync(join(root, "chat"))[0] ?? "");

describe("the prompts of earlier chats", () => {
  it("a chat gets the prompts of earlier chats of the same user, with all their lines", () => {
    const first = new InputHistory(root, "alice");
    expect(first.load()).toEqual([]);
    first.add("one\ntwo");
    first.add("three\u2028 \x1b[31m");
    expect(new InputHistory(root, "alice").load()).toEqual(["one\ntwo", "three\u2028 \x1b[31m"]);
    expect(new InputHistory(root, "Alice").load()).toEqual([]);
  });

  it("only the owner of the state folder can read the file of prompts, whatever the umask is", () => {
    const before = process.umask(0);
    try {
      const history = new InputHistory(root, "alice");
      history.load();
      history.add("secret");
      expect(statSync(file()).mode & 0o777).toBe(0o600);
      expect(statSync(join(root, "chat")).mode & 0o777).toBe(0o700);
    } finally {
      process.umask(before);
    }
  });

  it("two chats at once add to the same history", () => {
    const [one, two] = [new InputHistory(root, "alice"), new InputHistory(root, "alice")];
    one.load();
    two.load();
    one.add("a");
    two.add("b");
    one.add("c");
    expect(new InputHistory(root, "alice").load()).toEqual(["a", "b", "c"]);
  });

  it("the history keeps the newest prompts, and its file does not grow without limit", () => {
    const history = new InputHistory(root, "alice");
    history.load();
    for (let index = 0; index < 3_000; index++) history.add(`${index} ${"x".repeat(500)}`);
    const prompts = new InputHistory(root, "alice").load();
    expect(prompts.at(-1)).toMatch(/^2999 /);
    expect(prompts.length).toBeLessThanOrEqual(1_000);
    expect(statSync(file()).size).toBeLessThan(1_048_576);
    expect(readdirSync(join(root, "chat"))).toHaveLength(1);
  });

  it("the history keeps all complete prompts when a dying process has left half a line in the file", () => {
    const history = new InputHistory(root, "alice");
    history.load();
    history.add("one");
    writeFileSync(file(), '\n"half of a li', { flag: "a" });
    history.add("two");
    expect(new InputHistory(root, "alice").load()).toEqual(["one", "two"]);
  });

  it("the history does not record a prompt of more than 32 kB", () => {
    const history = new InputHistory(root, "alice");
    history.load();
    history.add("x".repeat(40_000));
    expect(history.load()).toEqual([]);
  });
});
