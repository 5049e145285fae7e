import { chmodSync, mkdirSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readEvents } from "../../src/accounts/audit/query.js";
import { keysBelow, keyTree } from "../../src/config/keys.js";
import { guardedKeys, valuesWithoutTrust } from "../../src/config/load/files.js";
import { trustRecordPath } from "../../src/config/load/load.js";
import { Fleet } from "../../src/fleet/fleet.js";
import { listTrusted, readProjectFile, revokeTrust, trustFile } from "../../src/fleet/trust.js";
import { Folder } from "./folder.js";

/** Allowed values of the guarded keys that do not accept the text "x". */
const VALUES: Record<string, unknown> = {
  isolation: "shared",
  "runtime.args": ["--x"],
  "runtime.env": ["AWS_SECRET_ACCESS_KEY"],
  provider: null,
  "provider.baseUrl": "http://attacker.example/v1",
  "session.approve": "all",
  "session.host": "owner",
  "session.tools": ["bash"],
  "serve.listen": "0.0.0.0:4300",
  "serve.metrics": "0.0.0.0:9464",
  "serve.http": "0.0.0.0:4380",
  "http.origins": ["https://attacker.example"],
  "serve.maxFrame": "256mb",
  "serve.proxyProtocol": true,
  store: "rediss://attacker.example:6379/0",
  "host.advertise": "attacker.example:4300",
  "host.ttl": "3s",
  insecure: true,
};

/** Each key that a file can set. */
const KEYS = [...keysBelow(keyTree())].filter((key) => key.kind !== "section" || key.nullable).map(({ name }) => name);

/** The nested form of one dotted key. */
function at(name: string, value: unknown): unknown {
  return name.split(".").reduceRight<unknown>((inner, part) => ({ [part]: inner }), value);
}

describe("the keys of the configuration", () => {
  it("a project file needs the user's trust for every key, except for these keys and values, which cannot do harm", () => {
    const harmless = KEYS.map((name) => [name, valuesWithoutTrust(name)] as const);
    expect(Object.fromEntries(harmless.filter(([, values]) => values.length > 0))).toEqual({
      "session.model": "all",
      "session.approve": ["none"],
      "session.host": ["none"],
      "provider.type": ["echo"],
      insecure: [false],
    });
  });

  it("a key that nobody has decided about needs the user's trust in a project file", () => {
    expect(guardedKeys(new Map([["new.key", { value: 1, origin: { from: "file", name: "f" } }]]))).toEqual(["new.key"]);
  });

  it.each(KEYS.filter((name) => name !== "session.model"))(
    "a project file that sets %s without the user's trust is refused, and the error names the key and the file",
    async (name) => {
      await using folder = new Folder();
      const content = at(name, name in VALUES ? VALUES[name] : "x");
      folder.write(folder.projectFile, content);
      const error = folder.refusal();
      expect(error).toMatchObject({ code: "FLEET_CONFIG_UNTRUSTED", exit: 3 });
      expect(error.message).toContain(`${name} in ${folder.projectFile} counts only when you trust this file.`);
      expect(error.suggestions).toContain(`copilotfleet trust ${folder.projectFile}`);
    },
  );

  it.each([
    ["provider.type", "echo"],
    ["session.approve", "none"],
    ["session.host", "none"],
    ["session.model", "m"],
  ])("a project file may set %s to the harmless value %j without the user's trust", async (name, value) => {
    await using folder = new Folder();
    folder.write(folder.projectFile, at(name, value));
    expect(folder.load().sources).toEqual([folder.projectFile]);
  });

  it("guarded keys need no trust in the user's own file, a variable, a flag or a file named by the user", async () => {
    await using folder = new Folder();
    const pathOf = (options = {}) => folder.load(options).config.runtime.path;
    folder.write(folder.userFile, { runtime: { path: "/user" } });
    expect(pathOf()).toBe("/user");
    expect(pathOf({ env: { COPILOTFLEET_RUNTIME_PATH: "/variable" } })).toBe("/variable");
    expect(pathOf({ flags: { runtime: { path: "/flag" } } })).toBe("/flag");
    const configFile = join(folder.root, "named.json");
    folder.write(configFile, { runtime: { path: "/named" } });
    folder.write(folder.projectFile, { runtime: { path: "/project" } });
    expect(pathOf({ configFile })).toBe("/named");
    expect(folder.load({ configFile }).sources).toEqual([configFile, folder.userFile]);
  });

  it("loading is refused when the configuration file that the user names does not exist", async () => {
    await using folder = new Folder();
    expect(folder.refusal({ configFile: "missing.json" })).toMatchObject({
      code: "FLEET_CONFIG_INVALID",
      message: expect.stringContaining(`${join(folder.cwd, "missing.json")} does not exist`),
    });
  });
});

describe("a project file that the user trusts", () => {
  /** Writes a project file with a guarded key. Returns the environment and the working folder for loading the file. */
  function hostile(folder: Folder) {
    folder.write(folder.projectFile, { runtime: { path: "./x" }, session: { model: "m" } });
    return { env: { COPILOTFLEET_HOME: join(folder.root, "state"), HOME: folder.home }, cwd: folder.cwd };
  }

  it("all keys of a trusted project file take effect until its content changes", async () => {
    await using folder = new Folder();
    const where = hostile(folder);
    const file = readProjectFile(undefined, where);
    expect(file).toMatchObject({ path: folder.projectFile, sets: { "runtime.path": join(folder.project, "x") } });
    expect(folder.refusal(where).code).toBe("FLEET_CONFIG_UNTRUSTED");
    await trustFile(file, where);
    expect(folder.load(where).config.runtime.path).toBe(join(folder.project, "x"));
    expect(listTrusted(where)).toMatchObject([{ path: folder.projectFile, state: "trusted" }]);
    folder.write(folder.projectFile, { runtime: { path: "./y" } });
    expect(folder.refusal(where)).toMatchObject({
      code: "FLEET_CONFIG_UNTRUSTED",
      message: expect.stringContaining("has changed since then"),
    });
    expect(listTrusted(where)).toMatchObject([{ state: "changed" }]);
  });

  it("trustFile trusts only the content that the user read, even if the file has changed since then", async () => {
    await using folder = new Folder();
    const where = hostile(folder);
    const file = readProjectFile(undefined, where);
    folder.write(folder.projectFile, { runtime: { path: "./y" } });
    await trustFile(file, where);
    expect(folder.refusal(where).code).toBe("FLEET_CONFIG_UNTRUSTED");
  });

  it("a project file that is a link in another folder to a trusted project file is not trusted", async () => {
    await using folder = new Folder();
    const where = hostile(folder);
    await trustFile(readProjectFile(undefined, where), where);
    const clone = join(folder.root, "clone");
    mkdirSync(clone);
    symlinkSync(folder.projectFile, join(clone, ".copilotfleet.json"));
    expect(folder.refusal({ ...where, cwd: clone }).code).toBe("FLEET_CONFIG_UNTRUSTED");
  });

  it("a project file stays trusted through a link to its folder, and relative paths then start at the link", async () => {
    await using folder = new Folder();
    const where = hostile(folder);
    const link = join(folder.root, "link");
    symlinkSync(folder.project, link);
    await trustFile(readProjectFile(link, where), where);
    expect(folder.load(where).config.runtime.path).toBe(join(folder.project, "x"));
    expect(folder.load({ ...where, cwd: link }).config.runtime.path).toBe(join(link, "x"));
  });

  it("trust in a project file applies to one state folder, and only until it is revoked", async () => {
    await using folder = new Folder();
    const where = hostile(folder);
    await trustFile(readProjectFile(undefined, where), where);
    const other = { ...where, env: { ...where.env, COPILOTFLEET_HOME: join(folder.root, "other") } };
    expect(folder.refusal(other).code).toBe("FLEET_CONFIG_UNTRUSTED");
    expect(await revokeTrust(folder.project, where)).toEqual([folder.projectFile]);
    expect(await revokeTrust(folder.project, where)).toEqual([]);
    expect(folder.refusal(where).code).toBe("FLEET_CONFIG_UNTRUSTED");
  });

  it("if trust cannot be recorded, the audit log gets a second event with the outcome failed", async () => {
    await using folder = new Folder();
    const where = hostile(folder);
    const state = where.env.COPILOTFLEET_HOME;
    folder.write(join(state, "trusted"), "in the way");
    chmodSync(state, 0o700);
    const trusted = trustFile(readProjectFile(undefined, where), where);
    await expect(trusted).rejects.toMatchObject({ code: "FLEET_STATE_UNWRITABLE" });
    const { events } = await readEvents(state, { limit: 10 });
    expect(events.map(({ type, outcome }) => [type, outcome])).toEqual([
      ["config.trusted", "ok"],
      ["config.trusted", "failed"],
    ]);
  });

  it("the event of a failed revocation has the reason revoked, and the code of the error in its detail", async () => {
    await using folder = new Folder();
    const where = hostile(folder);
    const state = where.env.COPILOTFLEET_HOME;
    await trustFile(readProjectFile(undefined, where), where);
    const record = trustRecordPath(state, folder.projectFile);
    // While the revocation waits for the audit log, replace the record with a folder, which it cannot remove as a file.
    const revoked = revokeTrust(folder.project, where);
    rmSync(record);
    mkdirSync(record);
    await expect(revoked).rejects.toMatchObject({ code: "FLEET_STATE_UNWRITABLE" });
    const { events } = await readEvents(state, { limit: 10 });
    const { projectFile } = folder;
    expect(events.slice(-2)).toMatchObject([
      { type: "config.trusted", outcome: "ok", reason: "revoked", detail: projectFile },
      {
        type: "config.trusted",
        outcome: "failed",
        reason: "revoked",
        detail: `${projectFile} (FLEET_STATE_UNWRITABLE)`,
      },
    ]);
  });

  it("Fleet.open refuses a project file unless the user trusts it or names it", async () => {
    await using folder = new Folder();
    const where = hostile(folder);
    await expect(Fleet.open(where)).rejects.toMatchObject({ code: "FLEET_CONFIG_UNTRUSTED", exit: 3 });
    await using named = await Fleet.open({ ...where, configFile: folder.projectFile });
    expect(named.config.runtime.path).toBe(join(folder.project, "x"));
    await trustFile(readProjectFile(undefined, where), where);
    await using trusted = await Fleet.open(where);
    expect(trusted.config.runtime.path).toBe(join(folder.project, "x"));
  });
});
