import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Ajv2020 } from "ajv/dist/2020.js";
import { describe, expect, it } from "vitest";
import type { CommandSnapshot } from "../scripts/schemas/commands.js";
import { promisesOf } from "../scripts/schemas/contract.js";
import { lint } from "../scripts/schemas/document.js";
import { breaksOf, httpPromises, type OpenApi } from "../scripts/schemas/http-contract.js";
import type { JsonSchema } from "../scripts/schemas/json-schema.js";

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
    ({ ps, list, output, exit }) => new Set(promisesOf({ ps, list }, { ps: output }, { FLEET_NAME_NOT_FOUND: exit })),
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
    ["an exit code", (changed) => (changed.exit = 1), "FLEET_NAME_NOT_FOUND exits with 4"],
    [
      "a call that omits an optional flag",
      ({ list }) => (list.flags.user = { type: "option", required: true }),
      "list requires nothing",
    ],
  ])("the list of promises loses a line when a change breaks %s", (_, change, line) => {
    expect(effectOf(change).removed).toContain(line);
  });
});

// biome-ignore lint/suspicious/noExplicitAny: each test changes other parts of the document
type Changed = any;

/** The promises of the HTTP API that break when `change` changes its description. */
function breaksWhen(change: (paths: Changed, components: Changed) => void): string[] {
  const before = read<OpenApi>("openapi.json");
  const after = read<OpenApi>("openapi.json");
  change(after.paths, after.components);
  const { lost, refused } = breaksOf(httpPromises(before), httpPromises(after));
  return [...lost, ...refused];
}
const bodyOf = (operation: Changed) => operation.requestBody.content["application/json"].schema;
const newSession = (paths: Changed) => bodyOf(paths["/v1/sessions"].post);
const listed = (paths: Changed, name: string) =>
  paths["/v1/sessions"].get.parameters.find((each: Changed) => each.name === name);

describe("the check of the HTTP API for breaking changes", () => {
  it.each<[string, Parameters<typeof breaksWhen>[0], string]>([
    ["a path", (paths) => delete paths["/v1/me"], "GET /v1/me answers 200"],
    ["a method", (paths) => delete paths["/v1/sessions/{id}"].patch, "PATCH /v1/sessions/{id} answers 200"],
    [
      "the name of an operation",
      (paths) => (paths["/v1/me"].get.operationId = "me"),
      "GET /v1/me is the operation getCaller",
    ],
    ["a status", (paths) => delete paths["/v1/sessions/{id}"].get.responses[304], "GET /v1/sessions/{id} answers 304"],
    [
      "the status of a success",
      (paths) => {
        const { responses } = paths["/v1/sessions"].post;
        responses[200] = responses[201];
        delete responses[201];
      },
      "POST /v1/sessions answers 201",
    ],
    [
      "a header of an answer",
      (paths) => delete paths["/v1/sessions/{id}"].get.responses[200].headers.ETag,
      "GET /v1/sessions/{id} answers 200 with the header ETag",
    ],
    [
      "a kind of answer",
      (paths) => delete paths["/v1/sessions/{id}/turns"].post.responses[200].content["text/event-stream"],
      "POST /v1/sessions/{id}/turns answers 200 as text/event-stream",
    ],
    [
      "a field of an answer",
      (_, { schemas }) => delete schemas.Session.properties.owner,
      "GET /v1/sessions/{id} session.owner: string",
    ],
    [
      "the type of a field of an answer",
      (_, { schemas }) => (schemas.Session.properties.owner = { type: "number" }),
      "GET /v1/sessions/{id} session.owner: string",
    ],
    [
      "the promise that a field of an answer is always there",
      (_, { schemas }) => schemas.Turn.required.splice(schemas.Turn.required.indexOf("reply"), 1),
      "POST /v1/sessions/{id}/turns reply: string",
    ],
    [
      "a value of an answer",
      (_, { schemas }) => schemas.Session.properties.state.enum.pop(),
      'GET /v1/sessions sessions[].state may be "gone"',
    ],
    ["a field of errors", (_, { schemas }) => delete schemas.Problem.properties.code, "HTTP errors code: string"],
    [
      "a parameter",
      (paths) => paths["/v1/sessions"].get.parameters.shift(),
      "GET /v1/sessions accepts limit as integer",
    ],
    [
      "a header of a request",
      (paths) => (paths["/v1/sessions/{id}/events"].get.parameters = []),
      "GET /v1/sessions/{id}/events accepts the header Last-Event-ID as string",
    ],
    [
      "a value of a parameter",
      (paths) => listed(paths, "state").schema.enum.pop(),
      'GET /v1/sessions accepts state as "gone"',
    ],
    [
      "a field of a body",
      (paths) => delete newSession(paths).properties.ttl,
      "POST /v1/sessions accepts ttl as string",
    ],
    [
      "one of two types of a field of a body",
      (paths) => (bodyOf(paths["/v1/sessions/{id}"].patch).properties.ttl = { type: "string" }),
      "PATCH /v1/sessions/{id} accepts ttl as null",
    ],
  ])("the check of the HTTP API finds the loss of %s", (_, change, line) => {
    expect(breaksWhen(change)).toContain(line);
  });

  it.each<[string, Parameters<typeof breaksWhen>[0], string]>([
    ["requires a field that could be left out", (paths) => newSession(paths).required.push("ttl"), "requires ttl"],
    [
      "requires a new field",
      (paths) => Object.assign(newSession(paths), { properties: { plan: { type: "string" } }, required: ["plan"] }),
      "requires plan",
    ],
    ["requires a body", (paths) => (paths["/v1/sessions"].post.requestBody.required = true), "requires a body"],
    [
      "requires a header",
      (paths) =>
        (paths["/v1/sessions"].post.parameters = [
          { name: "X-Plan", in: "header", required: true, schema: { type: "string" } },
        ]),
      "requires the header X-Plan",
    ],
    [
      "allows less",
      (paths) => (newSession(paths).properties.purpose.maxLength = 100),
      "limits purpose to maxLength 100",
    ],
    ["demands more", (paths) => (newSession(paths).properties.ttl.minLength = 2), "limits ttl to minLength 2"],
    ["demands a form", (paths) => (newSession(paths).properties.ttl.pattern = "^1"), "limits ttl to pattern ^1"],
    [
      "limits an entry of a list",
      (paths) => (newSession(paths).properties.members.items.maxLength = 5),
      "limits members[] to maxLength 5",
    ],
  ])("the check of the HTTP API finds that a request now %s", (_, change, line) => {
    expect(breaksWhen(change)).toContain(`POST /v1/sessions ${line}`);
  });
});

describe("the linter of the description of the HTTP API", () => {
  it("the linter finds nothing in the committed openapi.json", async () => {
    expect(await lint(read<object>("openapi.json"))).toEqual([]);
  });
});

it("the schema of each command's output is a valid JSON Schema of draft 2020-12", () => {
  const ajv = new Ajv2020();
  const names = readdirSync(`${FOLDER}output`);
  expect(names).toContain("ps.json");
  for (const name of names) expect(ajv.validateSchema(read<JsonSchema>(`output/${name}`)), name).toBe(true);
});
