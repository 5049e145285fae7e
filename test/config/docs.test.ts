import { readFileSync } from "node:fs";
import { Ajv2020 } from "ajv/dist/2020.js";
import { describe, expect, it } from "vitest";
import type { ConfigJsonSchema } from "../../scripts/schemas/config.js";
import { keysBelow, keyTree } from "../../src/config/keys.js";
import { valuesWithoutTrust } from "../../src/config/load/files.js";
import { at, Folder } from "./folder.js";

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");

const PAGE = read("docs/configuration-keys.md");
const SCHEMA = JSON.parse(read("schemas/config.json")) as ConfigJsonSchema;
const validate = new Ajv2020({ strict: true, allowUnionTypes: true }).compile(SCHEMA);

/** Returns the part of schemas/config.json that describes a key. */
function schemaOf(name: string): ConfigJsonSchema {
  let found: ConfigJsonSchema | undefined = SCHEMA;
  for (const part of name.split(".")) found = found?.properties?.[part];
  if (found === undefined) throw new Error(`schemas/config.json does not have the key ${name}`);
  return found;
}

const KEYS = [...keysBelow(keyTree())].filter(({ kind }) => kind !== "section");

describe("docs/configuration-keys.md", () => {
  it.each(KEYS)(
    "docs/configuration-keys.md lists the key $name, with a star only if a project file needs the user's trust to set it",
    ({ name }) => {
      expect(PAGE).toContain(`\n| \`${name}\`${valuesWithoutTrust(name) === "all" ? "" : "*"} | `);
    },
  );

  it.each(KEYS)("docs/configuration-keys.md lists the variable of the key $name", ({ name, variable }) => {
    expect(PAGE).toMatch(new RegExp(`^\\| \`${name.replaceAll(".", "\\.")}\`.* \`${variable}\` \\|$`, "m"));
  });
});

describe("schemas/config.json", () => {
  it.each(KEYS)("schemas/config.json describes the key $name, and accepts its default and examples", ({ name }) => {
    const { description, examples = [], ...schema } = schemaOf(name);
    expect(description).toMatch(/^[A-Z].*\.$/);
    expect(examples).not.toEqual([]);
    for (const value of [...examples, ...("default" in schema ? [schema.default] : [])])
      expect(validate(at(name, value)), `${name}: ${JSON.stringify(value)}`).toBe(true);
  });

  it.each(KEYS)(
    "a configuration file that sets the key $name to its default in schemas/config.json has no effect",
    async ({ name }) => {
      await using folder = new Folder();
      const schema = schemaOf(name);
      if (!("default" in schema) || name.startsWith("provider.")) return;
      const { config } = folder.load();
      folder.write(folder.userFile, at(name, schema.default));
      expect(folder.load().config).toEqual(config);
    },
  );

  it.each(KEYS)("the fleet accepts the examples of the key $name in schemas/config.json", async ({ name }) => {
    await using folder = new Folder();
    // Some values are allowed only together with another key.
    const others = {
      ...(name.startsWith("provider.") && name !== "provider.baseUrl"
        ? { provider: { baseUrl: "http://m.example" } }
        : {}),
      ...(name === "sandbox.network" ? { provider: { type: "echo" } } : {}),
      ...(name === "sandbox.allow" ? { sandbox: { network: "allow-list" }, provider: { type: "echo" } } : {}),
      ...(/^(serve|host)\.tls\./.test(name) ? { [name.split(".")[0] ?? ""]: { tls: { cert: "/a", key: "/b" } } } : {}),
      ...(name.startsWith("auth.githubApp.")
        ? { auth: { githubApp: { appId: 1, installationId: 2, privateKey: { file: "/key" } } } }
        : {}),
      ...(name.startsWith("storage.") ? { store: "redis://127.0.0.1" } : {}),
    };
    for (const value of schemaOf(name).examples ?? []) {
      if (value === "echo") continue;
      folder.write(folder.userFile, others);
      folder.write(folder.projectFile, at(name, value));
      expect(() => folder.load({ configFile: folder.projectFile }), JSON.stringify(value)).not.toThrow();
    }
  });

  it("schemas/config.json accepts .copilotfleet.example.json", () => {
    expect(validate(JSON.parse(read(".copilotfleet.example.json")))).toBe(true);
  });

  it.each([
    { sesion: {} },
    { session: { tll: "1h" } },
    { session: { ttl: 3600 } },
    { session: { ttl: "3600" } },
    { recycle: { maxMemory: 1024 } },
    { pool: { servers: 0 } },
    { ports: { from: "5000" } },
    { session: { approve: "some" } },
    { session: null },
    { provider: { type: "gemini" } },
    { runtime: { args: "--x" } },
    { session: { infinite: { backgroundCompactionThreshold: 0 } } },
  ])("schemas/config.json refuses %j, as the fleet does", async (content) => {
    await using folder = new Folder();
    folder.write(folder.userFile, content);
    folder.refusal();
    expect(validate(content)).toBe(false);
  });

  it("schemas/config.json accepts the durations and sizes that the fleet accepts", () => {
    for (const ttl of ["24h", "1h30m", "1.5h", "300s", "20ms", "2w"])
      expect(validate({ session: { ttl } }), ttl).toBe(true);
    for (const maxMemory of ["1gb", "512MB", "1.5Gb", "64kb", null])
      expect(validate({ recycle: { maxMemory } }), String(maxMemory)).toBe(true);
  });
});
