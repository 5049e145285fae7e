import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Check } from "../../src/fleet/doctor/checks.js";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { testFleet } from "../fixtures/commands/cli.js";

interface Seen {
  method: string | undefined;
  /** The beginning of the request's path, which should be the path of the configured base URL. */
  base: string;
  last: string;
  key: string | undefined;
}

const KEY = "sk-secret-key";
const fleet = testFleet();
let service: Server;
let address: string;
let seen: Seen[];
let answer: (response: ServerResponse) => void;

const list = (...ids: string[]) => JSON.stringify({ object: "list", data: ids.map((id) => ({ id, object: "model" })) });
const answers = (status: number, body = "{}", headers: Record<string, string> = {}) => {
  answer = (response) => void response.writeHead(status, { "content-type": "application/json", ...headers }).end(body);
};

beforeAll(async () => {
  service = createServer((request, response) => {
    const [, base = "", last = ""] = /^(.*)\/(models|messages|chat\/completions)$/.exec(request.url ?? "") ?? [];
    seen.push({ method: request.method, base, last, key: keyIn(request.headers) });
    request.resume().once("end", () => answer(response));
  }).listen(0, "127.0.0.1");
  await once(service, "listening");
  address = `127.0.0.1:${(service.address() as AddressInfo).port}`;
});
afterAll(() => {
  service.closeAllConnections();
  service.close();
});
beforeEach(() => {
  seen = [];
});

/** The name and the value of the header that contains the key. */
function keyIn(headers: IncomingHttpHeaders): string | undefined {
  const name = ["authorization", "api-key", "x-api-key"].find((header) => headers[header] !== undefined);
  return name === undefined ? undefined : `${name}: ${String(headers[name])}`;
}

function environment(type = "openai", path = "/v1"): NodeJS.ProcessEnv {
  return {
    COPILOTFLEET_PROVIDER_TYPE: type,
    COPILOTFLEET_PROVIDER_BASE_URL: `http://${address}${path}`,
    COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
    MODEL_KEY: KEY,
  };
}

async function modelCheck(env: NodeJS.ProcessEnv): Promise<Check | undefined> {
  const { stdout, code } = await fleet.run(["doctor", "--json"], { env });
  expect({ code, showsKey: stdout.includes(KEY) }).toEqual({ code: 0, showsKey: false });
  return (JSON.parse(stdout) as DoctorResult).checks.find(({ name }) => name === "model");
}

describe("the model check of doctor", () => {
  it.each([
    ["openai", "/v1", {}],
    ["azure", "", {}],
    ["anthropic", "", {}],
    ["azure", "", { COPILOTFLEET_PROVIDER_BEARER: "true" }],
  ])(
    "the model check asks a service of type %s (%j, %j) for its models, with the key and at the address that sessions use",
    async (type, path, more) => {
      answers(401, '{"error":{"message":"wrong key"}}');
      const env = { ...environment(type, path), ...more };
      expect(await modelCheck(env)).toMatchObject({
        level: "warning",
        detail: `provider of type ${type} at ${address} refuses the key in MODEL_KEY (status 401)`,
        fix: "Put a valid key into MODEL_KEY.",
      });
      expect(seen).toMatchObject([{ method: "GET", last: "models", key: expect.stringContaining(KEY) }]);
      const [{ base, key } = { base: "none", key: "none" }] = seen;
      // The runtime sends a prompt to the same address, with the same key.
      expect((await fleet.run(["create", "--user", type, "--prompt", "hello"], { env })).code).toBe(7);
      expect(seen.at(-1)).toMatchObject({ method: "POST", base, key });
    },
  );

  it.each([
    ["accepts the key", () => answers(200, list("gpt-4", "gpt-5")), "ok", /accepts the key in MODEL_KEY$/, null],
    [
      "lists its models without the one of sessions",
      () => answers(200, list("llama3", "qwen3")),
      "warning",
      /accepts the key in MODEL_KEY, but does not list the model "gpt-5"; it has "llama3", "qwen3"$/,
      "Set session.model to a model of this service.",
    ],
    [
      "has no list of models",
      () => answers(404),
      "warning",
      /has no list of models at "http:\S+\/v1" \(status 404\), so the key was not checked$/,
      "If prompts fail, correct provider.baseUrl. It often ends with /v1.",
    ],
    ["answers something else", () => answers(200, "<html>"), "ok", /does not list its models \(status 200\)/, null],
    ["has no capacity", () => answers(503), "warning", /answers with status 503$/, null],
    ["hangs up", () => (answer = (response) => void response.destroy()), "warning", /but did not answer: /, /baseUrl/],
  ] as const)("the model check reports that the service %s", async (_, set, level, detail, fix) => {
    set();
    expect(await modelCheck(environment())).toMatchObject({
      level,
      detail: expect.stringMatching(detail),
      fix: fix === null ? null : typeof fix === "string" ? fix : expect.stringMatching(fix),
    });
    expect(seen).toHaveLength(1);
  });

  it("for Azure, the model check states that it did not check the model, because Azure does not list deployments", async () => {
    answers(200, list("gpt-4", "llama3"));
    expect(await modelCheck(environment("azure", ""))).toMatchObject({
      level: "ok",
      detail: `provider of type azure at ${address} accepts the key in MODEL_KEY; it does not list its deployments, so session.model "gpt-5" was not checked`,
    });
  });

  it("the model check gives up on a service that accepts the request and never answers", async () => {
    answer = () => undefined;
    const check = await modelCheck(environment());
    expect(check?.detail).toMatch(/accepts connections, but did not answer: nothing within 5 s$/);
  });

  it("the model check never sends the key to the address of a redirection", async () => {
    answers(302, "", { location: `http://${address}/elsewhere/models` });
    expect(await modelCheck(environment())).toMatchObject({ level: "ok", detail: expect.stringMatching(/status 302/) });
    expect(seen.map(({ base }) => base)).toEqual(["/v1"]);
  });

  it("the model check sends no key to a service that needs none", async () => {
    answers(200, list("gpt-5"));
    const env = { ...environment(), COPILOTFLEET_PROVIDER_API_KEY: "null" };
    expect(await modelCheck(env)).toMatchObject({ level: "ok", detail: expect.stringMatching(/ answers$/) });
    expect(seen).toMatchObject([{ key: undefined }]);
  });
});
