import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Ajv2020 } from "ajv/dist/2020.js";
import { describe, expect, it } from "vitest";
import type { CommandSnapshot } from "../scripts/schemas/commands.js";
import { promisesOf } from "../scripts/schemas/contract.js";
import type { JsonSchema } from "../scripts/schemas/json-schema.js";
import { described } from "./fixtures/commands/output-schema.js";

const FOLDER = fileURLToPath(new URL("../schemas/", import.meta.url));

function read<T>(name: string): T {
  return JSON.parse(readFileSync(`${FOLDER}${name}`, "utf8")) as T;
}

/** A new copy of the part of the contract that a test changes. */
function contract() {
  const { ps, list } = read<Record<"ps" | "list", CommandSnapshot>>("commands.json");
  const output = read<JsonSchema & { $defs: { ServerView: Required<JsonSchema> } }>("output/ps.json");
  return { ps, list, output, server: output.$defs.ServerView, exit: 4 };
}

/** The promises that disappear and appear when `change` changes the contract. */
function effectOf(change: (changed: ReturnType<typeof contract>) => void): { removed: string[]; added: string[] } {
  const changed = contract();
  change(changed);
  const [before, after] = [contract(), changed].map(
    ({ ps, list, output, exit }) => new Set(promisesOf({ ps, list }, { ps: output }, { FLEET_SERVER_NOT_FOUND: exit })),
  );
  if (before === undefined || after === undefined) throw new Error("no promises");
  return {
    removed: [...before].filter((line) => !after.has(line)),
    added: [...after].filter((line) => !before.has(line)),
  };
}

describe("the list of promises", () => {
  it.each<[string, Parameters<typeof effectOf>[0], string]>([
    ["a field", ({ server }) => delete server.properties.pid, "ps --json servers[].pid: null | number"],
    [
      "the type of a field",
      ({ server }) => (server.properties.crashes = { type: ["null", "number"] }),
      "ps --json servers[].crashes: number",
    ],
    [
      "the promise that a field is always there",
      ({ server }) => server.required.splice(server.required.indexOf("home"), 1),
      "ps --json servers[].home: string",
    ],
    [
      "a state",
      ({ server }) => (server.properties.state = { enum: ["ready"] }),
      'ps --json servers[].state may be "failed"',
    ],
    ["a flag", ({ list }) => delete list.flags.user, "list --user VALUE"],
    ["a choice", ({ list }) => list.flags.state?.options?.pop(), "list --state may be gone"],
    ["an exit code", (changed) => (changed.exit = 1), "FLEET_SERVER_NOT_FOUND exits with 4"],
    [
      "a call that omits an optional flag",
      ({ list }) => (list.flags.user = { type: "option", required: true }),
      "list requires nothing",
    ],
  ])("loses a line when a change breaks %s", (_, change, line) => {
    expect(effectOf(change).removed).toContain(line);
  });

  it.each<[string, Parameters<typeof effectOf>[0], string]>([
    ["field", ({ server }) => (server.properties.colour = { type: "string" }), "ps --json servers[].colour?: string"],
    ["state", ({ server }) => server.properties.state?.enum?.push("lost"), 'ps --json servers[].state may be "lost"'],
    ["flag", ({ ps }) => (ps.flags.host = { type: "option", char: "H" }), "ps --host is also -H"],
    [
      "second name of a command",
      ({ list }) => (list.aliases = [...(list.aliases ?? []), "catalogue"]),
      "list is also catalogue",
    ],
  ])("keeps all lines when a change adds a %s", (_, change, line) => {
    expect(effectOf(change)).toEqual({ removed: [], added: expect.arrayContaining([line]) });
  });
});

describe("a test that reads the output of a command", () => {
  const print = async (args: string[], output: object, code: number | null = 0) =>
    await described(args, Promise.resolve({ code, stdout: JSON.stringify(output) }));
  const revoke = ["token", "revoke", "--user", "alice", "--json"];
  const error = { code: "FLEET_STATE_BUSY", message: "Busy.", suggestions: [], retryable: true };

  it.each<[string, string[], object]>([
    ["a result", revoke, { revoked: ["a"] }],
    ["an error", revoke, { error }],
    ["an error of a command that does not exist", ["fly", "--json"], { error }],
    ["an error with the work that was done in spite of it", ["delete", "a", "--json"], { error, deleted: ["a"] }],
    ["the output of a command without --json", ["lock", "s", "--", "run", "--json"], { anything: 1 }],
  ])("the check of a command's output accepts %s", async (_, args, output) => {
    await expect(print(args, output)).resolves.toBeDefined();
  });

  it.each<[string, string[], object]>([
    ["a result without a field", revoke, {}],
    ["a result with a field of another type", revoke, { revoked: "a" }],
    ["a result with a field that the schema lacks", revoke, { revoked: [], left: [] }],
    ["an error with a code that does not exist", revoke, { error: { ...error, code: "FLEET_UNKNOWN" } }],
    ["an error with a field that the schema lacks", revoke, { error, revoked: [] }],
  ])("the check of a command's output refuses %s", async (_, args, output) => {
    await expect(print(args, output)).rejects.toThrow("schemas/ does not describe the output of token revoke");
  });

  it("the check of a command's output accepts anything from a command that was killed", async () => {
    await expect(print(revoke, { revo: 1 }, null)).resolves.toBeDefined();
  });
});

it("the schema of each command's output is a valid JSON Schema of draft 2020-12", () => {
  const ajv = new Ajv2020();
  const names = readdirSync(`${FOLDER}output`);
  expect(names).toContain("ps.json");
  for (const name of names) expect(ajv.validateSchema(read<JsonSchema>(`output/${name}`)), name).toBe(true);
});
