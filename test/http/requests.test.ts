import { approveAll, CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { AgentRequest } from "../../src/sessions/requests.js";
import { eventually } from "../fixtures/eventually.js";
import { unused } from "../fixtures/sessions/unused.js";
import { ask, eventsIn, openStream, type Reply, TestApi } from "./harness.js";

/** The permissions and questions of the agent at the HTTP API, with the real runtime and the echo model. */

const SHELL = '!tool bash {"command": "echo made", "description": "make"}';
const CHOICE = '!tool ask_user {"question": "Which colour?", "choices": ["red", "blue"]}';
const QUESTION = '!tool ask_user {"question": "Which name?"}';
const STREAM = { Accept: "text/event-stream" };
const ASK = { COPILOTFLEET_SESSION_APPROVE: "ask" };

let at: TestApi;
let token: string;
beforeAll(async () => {
  at = await TestApi.open({ env: ASK });
  token = await at.token("alice");
});
afterAll(async () => await at[Symbol.asyncDispose]());

async function session(members?: string[], api = at, by = token): Promise<string> {
  const id = unused("asks");
  await api.ok("POST", "/v1/sessions", { token: by, body: { id, ...(members === undefined ? {} : { members }) } });
  return id;
}

/** Begins a turn. @returns its answer, which arrives only after all agent requests of the turn are closed */
function turn(id: string, prompt: string, more: { by?: string; api?: TestApi; body?: object; headers?: object } = {}) {
  const { by = token, api = at, body = {}, headers = {} } = more;
  const path = `/v1/sessions/${id}/turns`;
  return api.ask("POST", path, { token: by, body: { prompt, ...body }, headers: { ...headers } });
}

async function requestsOf(id: string, by = token, api = at): Promise<AgentRequest[]> {
  return (await api.ok("GET", `/v1/sessions/${id}/requests`, { token: by })).json.requests;
}

/** Waits until the agent has asked, and returns the first open request. */
async function asked(id: string, by = token, api = at): Promise<AgentRequest> {
  let found: AgentRequest | undefined;
  await eventually("a request", async () => {
    [found] = await requestsOf(id, by, api);
    return found !== undefined;
  });
  return found as AgentRequest;
}

async function answer(id: string, requestId: string, body: object, by = token, api = at): Promise<Reply> {
  return await api.ask("POST", `/v1/sessions/${id}/requests/${requestId}`, { token: by, body });
}

describe("a permission over HTTP", () => {
  it("a permission request waits, runs the tool once it is approved, and refuses a second answer", async () => {
    const id = await session();
    const running = turn(id, SHELL);
    const request = await asked(id);
    expect(request).toMatchObject({
      session: id,
      user: "alice",
      kind: "permission",
      permission: { kind: "shell", fullCommandText: "echo made" },
      question: null,
      outcome: null,
    });
    expect(Date.parse(request.expiresAt) - Date.parse(request.openedAt)).toBe(300_000);
    const approved = await answer(id, request.id, { decision: "approve" });
    expect(approved).toMatchObject({ status: 200, json: { ...request, outcome: "approved" } });
    const reply = await running;
    expect(reply).toMatchObject({ status: 200, json: { reply: expect.stringContaining("made") } });
    expect(await requestsOf(id)).toEqual([]);
    const again = await answer(id, request.id, { decision: "deny" });
    expect(again).toMatchObject({
      status: 409,
      json: { code: "FLEET_REQUEST_CLOSED", detail: expect.stringContaining("it was approved") },
    });
  });

  it("the model receives the reason for a denied permission", async () => {
    const id = await session();
    const running = turn(id, SHELL);
    const { id: requestId } = await asked(id);
    const denied = await answer(id, requestId, { decision: "deny", reason: "not on a Sunday" });
    expect(denied.json).toMatchObject({ outcome: "denied" });
    expect((await running).json.reply).toContain("not on a Sunday");
  });
});

describe("a question over HTTP", () => {
  it("a question accepts one of its choices or any other text", async () => {
    const id = await session();
    const running = turn(id, CHOICE);
    const request = await asked(id);
    expect(request).toMatchObject({
      kind: "question",
      permission: null,
      question: { question: "Which colour?", choices: ["red", "blue"], freeform: true },
    });
    expect((await answer(id, request.id, { answer: "blue" })).json).toMatchObject({ outcome: "answered" });
    expect((await running).json.reply).toContain("User selected: blue");
    const next = turn(id, CHOICE);
    await answer(id, (await asked(id)).id, { answer: "green, if possible" });
    expect((await next).json.reply).toContain("green, if possible");
  });
});

describe("a question that another client of the user answers", () => {
  it("if the user's SDK client answers a question, the question is closed, and the turn uses that answer", async () => {
    const door = await at.fleet.doors.open({ listen: "127.0.0.1:0" });
    const uri = `127.0.0.1:${door.address.port}`;
    const client = new CopilotClient({ connection: RuntimeConnection.forUri(uri, { connectionToken: token }) });
    try {
      await client.start();
      const id = await session();
      let letGo = (): void => undefined;
      const gate = new Promise<void>((resolve) => (letGo = resolve));
      await client.resumeSession(id, {
        onPermissionRequest: approveAll,
        onUserInputRequest: async () => {
          await gate;
          return { answer: "from the other", wasFreeform: true };
        },
      });
      const running = turn(id, QUESTION);
      const request = await asked(id);
      letGo();
      expect((await running).json.reply).toContain("from the other");
      expect(await answer(id, request.id, { answer: "late" })).toMatchObject({
        status: 409,
        json: { detail: expect.stringContaining("it was answered") },
      });
    } finally {
      await client.forceStop();
      await door.close();
    }
  });
});

describe("answers that do not fit", () => {
  it("an answer that does not fit the agent request is refused with a reason, and the request stays open", async () => {
    const id = await session();
    const running = turn(id, SHELL);
    const request = await asked(id);
    const wrong: [object, string][] = [
      [{}, "A permission needs"],
      [{ answer: "yes" }, "answers a question"],
      [{ decision: "maybe" }, "approve or deny"],
      [{ decision: "approve", reason: "why not" }, "only with"],
      [{ decision: "deny", reason: " " }, "not blank"],
      [{ decision: "deny", reason: "x".repeat(20_000) }, "at most 16000 characters"],
      [{ decision: "approve", more: true }, "more"],
    ];
    for (const [body, detail] of wrong) {
      const { status, text } = await answer(id, request.id, body);
      expect([status, text]).toEqual([422, expect.stringContaining(detail)]);
    }
    const unknown = await answer(id, "nothing", { decision: "approve" });
    expect(unknown).toMatchObject({ status: 404, json: { code: "FLEET_NAME_NOT_FOUND" } });
    const elsewhere = await answer(await session(), request.id, { decision: "approve" });
    expect(elsewhere).toMatchObject({ status: 404, json: { code: "FLEET_NAME_NOT_FOUND" } });
    expect(await requestsOf(id)).toHaveLength(1);
    await answer(id, request.id, { decision: "deny" });
    await running;
  });
});

describe("streams", () => {
  it("a turn's and a session's stream report when agent requests open and close, without event ids", async () => {
    const id = await session();
    await turn(id, "hello");
    const stop = new AbortController();
    const follower = openStream(at.door.url, `/v1/sessions/${id}/events`, { token, signal: stop.signal });
    await eventually("the follower", () => follower.text.includes("assistant.message"));
    const running = turn(id, SHELL, { headers: STREAM });
    const request = await asked(id);
    await answer(id, request.id, { decision: "approve" });
    const opened = { event: "request.opened", data: request };
    const closed = { event: "request.closed", data: { ...request, outcome: "approved" } };
    const changesIn = (text: string) => eventsIn(text).filter(({ event }) => event.startsWith("request."));
    expect(changesIn((await running).text)).toEqual([opened, closed]);
    await eventually("both changes", () => changesIn(follower.text).length === 2);
    expect(changesIn(follower.text)).toEqual([opened, closed]);
    stop.abort();
  });
});

describe("a request that nobody answers", () => {
  it("an agent request without an answer expires after session.answerTimeout, and the turn continues", async () => {
    await using other = await TestApi.open({ env: { ...ASK, COPILOTFLEET_SESSION_ANSWER_TIMEOUT: "4s" } });
    const by = await other.token("alice");
    const id = await session(undefined, other, by);
    const running = turn(id, SHELL, { by, api: other });
    const request = await asked(id, by, other);
    expect((await running).json.reply).toContain("Permission denied");
    const late = await answer(id, request.id, { decision: "approve" }, by, other);
    expect(late).toMatchObject({ status: 409, json: { detail: expect.stringContaining("nobody answered in time") } });
    expect((await turn(id, QUESTION, { by, api: other })).json.reply).toContain("Nobody answered");
  });

  it("an agent request is cancelled when its turn is aborted", async () => {
    const id = await session();
    const running = turn(id, SHELL);
    const request = await asked(id);
    await at.ok("POST", `/v1/sessions/${id}/abort`, { token });
    await running;
    expect(await requestsOf(id)).toEqual([]);
    const late = await answer(id, request.id, { decision: "approve" });
    expect(late).toMatchObject({ status: 409, json: { detail: expect.stringContaining("turn has ended") } });
    expect((await turn(id, "and now")).json.reply).toContain("and now");
  });

  it("when the door drains, an open agent request expires, so that its turn ends before the timeout", async () => {
    const id = await session();
    const door = await at.fleet.doors.openHttp({ listen: "127.0.0.1:0" });
    const running = ask(door.url, "POST", `/v1/sessions/${id}/turns`, { token, body: { prompt: SHELL } });
    await asked(id);
    expect(await door.close({ timeout: "20s" })).toEqual({ cut: 0 });
    expect((await running).json.reply).toContain("Permission denied");
  });

  it("an agent request expires when its server is restarted, so that the restart cuts no turn", async () => {
    const id = await session();
    const running = turn(id, SHELL);
    await asked(id);
    const { server } = await at.fleet.servers.spawn("alice");
    const { stopped } = await at.fleet.servers.restart([server.id]);
    expect(stopped).toMatchObject([{ outcome: "drained", cut: [] }]);
    expect((await running).json.reply).toContain("Permission denied");
  });
});

describe("turns that nobody answers", () => {
  it("with interactive: false, tools are refused at once, and the agent has no tool to ask questions", async () => {
    const id = await session();
    const refused = await turn(id, SHELL, { body: { interactive: false } });
    expect(refused.json.reply).toContain("Tools are not allowed here");
    expect((await turn(id, QUESTION, { body: { interactive: false } })).json.reply).toContain("does not exist");
  });

  it.each([
    ["none", "Tools are not allowed here"],
    ["all", "made"],
  ])(
    "with session.approve %s, permissions never wait, and questions wait only in turns with interactive: true",
    async (approve, reply) => {
      await using other = await TestApi.open({ env: { COPILOTFLEET_SESSION_APPROVE: approve } });
      const by = await other.token("alice");
      const id = await session(undefined, other, by);
      for (const body of [{}, { interactive: true }]) {
        expect((await turn(id, SHELL, { by, api: other, body })).json.reply).toContain(reply);
      }
      expect((await turn(id, QUESTION, { by, api: other })).json.reply).toContain("does not exist");
      const running = turn(id, QUESTION, { by, api: other, body: { interactive: true } });
      await answer(id, (await asked(id, by, other)).id, { answer: "Plugh" }, by, other);
      expect((await running).json.reply).toContain("Plugh");
    },
  );
});

describe("a collaborative session", () => {
  it("only a turn's user sees and can answer its agent requests; a member's turn may not use tools", async () => {
    const bob = await at.token("bob");
    const id = await session(["bob"]);
    const ofAlice = turn(id, QUESTION);
    const first = await asked(id);
    expect(await requestsOf(id, bob)).toEqual([]);
    const stolen = await answer(id, first.id, { answer: "mine" }, bob);
    expect(stolen).toMatchObject({ status: 404, json: { code: "FLEET_NAME_NOT_FOUND" } });
    await answer(id, first.id, { answer: "from alice" });
    expect((await ofAlice).json.reply).toContain("from alice");
    const ofBob = turn(id, QUESTION, { by: bob });
    const second = await asked(id, bob);
    expect(second.user).toBe("bob");
    expect(await requestsOf(id)).toEqual([]);
    expect((await answer(id, second.id, { answer: "mine" })).status).toBe(404);
    await answer(id, second.id, { answer: "from bob" }, bob);
    expect((await ofBob).json.reply).toContain("from bob");
    expect((await turn(id, SHELL, { by: bob })).json.reply).toContain("Tools are not allowed here");
  });
});
