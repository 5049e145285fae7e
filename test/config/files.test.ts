import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { PartialConfig } from "../../src/config/load/load.js";
import { Folder } from "./folder.js";

describe("configuration files that cannot be used", () => {
  it.each([
    ["malformed", '{\n  "session": {,}\n}', "line 2, column 15"],
    ["empty", "", "is empty"],
    ["with comments", "{\n  // no\n}", "comments are not JSON"],
    ["not an object", "[]", "The configuration"],
    ["null", "null", "The configuration"],
    ["larger than 1 MB", `"${"x".repeat(1024 * 1024)}"`, "1048576"],
  ])(
    "the error for a bad configuration file (%s) names its path and what is wrong with it",
    async (_, content, part) => {
      await using folder = new Folder();
      folder.write(folder.projectFile, content);
      const error = folder.refusal();
      expect(error).toMatchObject({ code: "FLEET_CONFIG_INVALID", exit: 3 });
      expect(error.message).toContain(folder.projectFile);
      expect(error.message).toContain(part);
      expect(error.message).toContain("Allowed: ");
    },
  );

  it("a configuration file that is a folder or a named pipe without a writer is refused", async () => {
    await using folder = new Folder();
    mkdirSync(folder.projectFile);
    expect(folder.refusal().message).toContain("is a folder, not a regular file");
    mkdirSync(join(folder.userFile, ".."), { recursive: true });
    execFileSync("sh", ["-c", 'mkfifo "$1"', "sh", folder.userFile]);
    const { message, suggestions } = folder.refusal({ cwd: folder.home });
    expect(message).toContain("is not a regular file");
    // The error does not suggest moving the file, because the system may need it in its place, as with /dev/null.
    expect(suggestions.join()).not.toContain("mv ");
  });

  it("a configuration file that anybody can write is refused", async () => {
    await using folder = new Folder();
    folder.write(folder.projectFile, {});
    chmodSync(folder.projectFile, 0o666);
    expect(folder.refusal().suggestions).toEqual([`chmod o-w ${folder.projectFile}`]);
  });

  it.runIf(process.geteuid?.() === 0)("a configuration file that belongs to another user is refused", async () => {
    await using folder = new Folder();
    folder.write(folder.projectFile, {});
    expect(() => folder.load({ uid: 1000 })).not.toThrow();
    chownSync(folder.projectFile, 1001, 1001);
    expect(folder.refusal({ uid: 1000 }).message).toContain("belongs to another user (uid 1001)");
  });

  it("the error for a configuration file escapes control characters in its path", async () => {
    await using folder = new Folder();
    const cwd = join(folder.root, "\u001b[31mred");
    folder.write(join(cwd, ".copilotfleet.json"), "{");
    expect(folder.refusal({ cwd }).message).not.toContain("\u001b");
  });
});

describe("unknown keys", () => {
  it.each([
    [{ sesion: { ttl: "1h" } }, "sesion", ["session"]],
    [{ session: { tll: "1h" } }, "session.tll", ["session.ttl"]],
    [{ ttl: "1h" }, "ttl", ["session.ttl", "lock.ttl"]],
    [{ session: { infinite: { enable: true } } }, "session.infinite.enable", ["session.infinite.enabled"]],
    [{ maxactive: 3 }, "maxactive", ["session.maxActive"]],
    [{ provider: { type: "openai", token: "sk-canary" } }, "provider.token", ["provider.apiKey"]],
  ])("the error for the unknown key in %j suggests the nearest keys", async (content, name, nearest) => {
    await using folder = new Folder();
    folder.write(folder.projectFile, content);
    const error = folder.refusal();
    expect(error).toMatchObject({ code: "FLEET_CONFIG_INVALID", exit: 3 });
    expect(error.message).toMatch(new RegExp(`"${name}" is not a (?:key|setting)`));
    expect(error.message).toContain(folder.projectFile);
    for (const known of nearest) expect(error.suggestions[0]).toContain(known);
  });

  it("the error for the unknown key provider.secret suggests provider.apiKey, and hides the secret", async () => {
    await using folder = new Folder();
    folder.write(folder.projectFile, { provider: { type: "openai", secret: "sk-canary" } });
    const error = folder.refusal();
    expect(error.suggestions.join()).toContain('set provider.apiKey to {"env": "NAME"}');
    expect(JSON.stringify([error.message, error.suggestions, error.stack])).not.toContain("canary");
  });

  it("the error for an unknown key names the line of the key", async () => {
    await using folder = new Folder();
    folder.write(folder.projectFile, '{\n  "session": {\n    "tll": "1h"\n  }\n}');
    expect(folder.refusal().message).toContain(
      `"session.tll" is not a key of the configuration (in ${folder.projectFile}, line 3); the nearest`,
    );
  });

  it("a configuration file may name its schema, but only at the top level, and the schema has no effect", async () => {
    await using folder = new Folder();
    folder.write(folder.projectFile, { $schema: "./schema.json", session: { model: "m" } });
    const { config, given } = folder.load();
    expect(config.session.model).toBe("m");
    expect([...given.keys()]).toEqual(["session.model"]);
    folder.write(folder.projectFile, { session: { $schema: "./schema.json" } });
    expect(folder.refusal()).toMatchObject({ code: "FLEET_CONFIG_INVALID" });
  });

  it.each(["__proto__", "constructor", "prototype", "toString"])(
    "the key %s in a configuration file is refused and changes no object's prototype",
    async (name) => {
      await using folder = new Folder();
      for (const text of [`{"${name}": {"polluted": 1}}`, `{"session": {"${name}": {"polluted": 1}}}`]) {
        folder.write(folder.projectFile, text);
        expect(folder.refusal()).toMatchObject({ code: "FLEET_CONFIG_INVALID" });
        expect(({} as { polluted?: number }).polluted).toBeUndefined();
      }
    },
  );

  it("the error for an unknown configuration key in an option of the library names the option", async () => {
    await using folder = new Folder();
    const flags = { nonsense: 1 } as unknown as PartialConfig;
    expect(folder.refusal({ flags }).message).toContain("the option config.nonsense");
  });
});
