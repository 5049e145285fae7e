import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { keyVariables } from "../../src/config/keys.js";
import { environmentLayer, unknownVariables } from "../../src/config/load/environment.js";
import { isExposed } from "../../src/config/secret.js";
import { Folder } from "./folder.js";

const URL = "rediss://canary@redis.example/0";

/** Writes a file with the mode that a secret needs, and returns its path. */
function secret(folder: Folder, content: string, mode = 0o600): string {
  const path = join(folder.root, "secret");
  writeFileSync(path, content);
  chmodSync(path, mode);
  return path;
}

describe("a variable that ends with _FILE", () => {
  it("a variable that ends with _FILE sets a key to the content of a file without its last line break", async () => {
    await using folder = new Folder();
    const path = secret(folder, `${URL}\n`);
    const { config, given } = folder.load({ env: { COPILOTFLEET_STORE_FILE: path } });
    expect(config.store).toEqual({ kind: "redis", url: URL });
    expect(given.get("store")?.origin).toEqual({ from: "variable", name: "COPILOTFLEET_STORE_FILE" });
    expect(unknownVariables({ COPILOTFLEET_STORE_FILE: path, COPILOTFLEET_STOR_FILE: path })).toEqual([
      { name: "COPILOTFLEET_STOR_FILE", nearest: null },
    ]);
  });

  it("each key has a variable that ends with _FILE, and this is not the variable of another key", async () => {
    await using folder = new Folder();
    const path = secret(folder, "null");
    const variables = keyVariables();
    for (const variable of variables) {
      expect(variables).not.toContain(`${variable}_FILE`);
      const layer = environmentLayer({ [`${variable}_FILE`]: path }, { folder: folder.cwd, home: folder.home });
      expect([...layer.values()].map(({ origin }) => origin.name)).toEqual([`${variable}_FILE`]);
    }
  });

  it("a variable and its _FILE variable are refused together, and errors about the file contain its path", async () => {
    await using folder = new Folder();
    const path = secret(folder, URL);
    const refused = (env: Record<string, string>) => {
      const { code, message, suggestions } = folder.refusal({ env });
      expect(code).toBe("FLEET_CONFIG_INVALID");
      expect(message + JSON.stringify(suggestions)).not.toContain("canary");
      return { message, suggestions };
    };
    expect(refused({ COPILOTFLEET_STORE: "file", COPILOTFLEET_STORE_FILE: path })).toEqual({
      message: "COPILOTFLEET_STORE and COPILOTFLEET_STORE_FILE are both set. Allowed: one of the two",
      suggestions: ["Unset COPILOTFLEET_STORE or COPILOTFLEET_STORE_FILE."],
    });
    const named = `The file ${path}, which COPILOTFLEET_STORE_FILE names,`;
    chmodSync(path, 0o604);
    expect(refused({ COPILOTFLEET_STORE_FILE: path })).toEqual({
      message: `${named} has mode 604, so that others can use it. Allowed: a file that only its owner can use`,
      suggestions: [`chmod 600 ${path}`],
    });
    const none = join(folder.root, "none");
    expect(refused({ COPILOTFLEET_STORE_FILE: none }).message).toContain(`${none}, which`);
    mkdirSync(none);
    expect(refused({ COPILOTFLEET_STORE_FILE: none }).message).toContain(
      "cannot be used. Allowed: a regular file of at most 65536 bytes",
    );
    expect(refused({ COPILOTFLEET_SESSION_TTL_FILE: secret(folder, "1 day") }).suggestions).toEqual([
      "Correct the content of the file that COPILOTFLEET_SESSION_TTL_FILE names, for example 30d.",
    ]);
  });
});

it.each([
  ["0600 of the account", 0o600, 1000, 1000, false],
  ["0640 of the account", 0o640, 1000, 1000, true],
  ["0440 of root, for a group", 0o440, 0, 1000, false],
  ["0460 of root, which the group can change", 0o460, 0, 1000, true],
  ["0444 of root", 0o444, 0, 1000, true],
  ["0440 of root, if the account is root", 0o440, 0, 0, true],
])("isExposed returns whether others can use a secret in a file with mode %s", (_, mode, uid, euid, exposed) => {
  expect(isExposed({ mode, uid }, euid)).toBe(exposed);
});
