import { once } from "node:events";
import { appendFileSync } from "node:fs";
import { type IncomingMessage, request } from "node:http";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { startScriptedModel } from "../fixtures/models/scripted-model.js";
import { historyFiles } from "../fixtures/sessions/session-history.js";
import { unused } from "../fixtures/sessions/unused.js";
import { eventsIn, openStream, type Received, TestApi } from "./harness.js";

let at: TestApi;
let token: string;
beforeAll(async () => {
  at = await TestApi.open();
  token = await at.token("alice");
});
afterAll(async () => await at[Symbol.asyncDispose]());

const STREAM = { Accept: "text/event-stream" };

async function session(): Promise<string> {
  const id = unused("stream");
  await at.ok("POST", "/v1/sessions", { token, body: { id } });
  return id;
}

const send = async (id: string, prompt: string, headers = {}, groups = "all") =>
  await at.ask("POST", `/v1/sessions/${id}/turns?events=${encodeURIComponent(groups)}`, {
    token,
    body: { prompt },
    headers,
  });

/** All ids in a stream, also those of events that were left out. */
const idsIn = (text: string) => [...text.matchAll(/^id: (.*)$/gm)].map(([, id = ""]) => id);
const deltasIn = (text: string) =>
  eventsIn(text)
    .filter(({ event }) => event === "assistant.message_delta")
    .map(({ data }) => data.data.deltaContent)
    .join("");

async function recordedIds(id: string): Promise<string[]> {
  const ids: string[] = [];
  for await (const event of at.fleet.sessions.followEvents(id, { user: "alice" })) ids.push(event.id);
  return ids;
}

/** An open stream of a session's events. */
class Follower {
  readonly response: IncomingMessage;
  text = "";
  private constructor(response: IncomingMessage) {
    this.response = response;
    response.setEncoding("utf8").on("data", (chunk: string) => {
      this.text += chunk;
    });
    response.on("error", () => undefined); // the test cuts the connection
  }

  static async open(id: string, after?: string): Promise<Follower> {
    const headers = {
      Authorization: `Bearer ${token}`,
      ...(after === undefined ? {} : { "Last-Event-ID": after }),
    };
    const sent = request(`${at.door.url}/v1/sessions/${id}/events?events=all`, { headers, agent: false });
    sent.on("error", () => undefined);
    sent.end();
    const [response] = (await once(sent, "response")) as [IncomingMessage];
    return new Follower(response);
  }

  get events(): Received[] {
    return eventsIn(this.text);
  }

  cut(): void {
    this.response.destroy();
  }
}

describe("the stream of a turn", () => {
  it("a turn's stream has its events in order, ends with turn.end, and gives ids only to recorded events", async () => {
    const id = await session();
    const { status, headers, text } = await send(id, "hello", STREAM);
    expect(status).toBe(200);
    expect(headers["content-type"]).toBe("text/event-stream");
    const events = eventsIn(text);
    const names = events.map(({ event }) => event);
    expect(names.indexOf("user.message")).toBeLessThan(names.indexOf("assistant.message_delta"));
    expect(names.indexOf("assistant.message_delta")).toBeLessThan(names.indexOf("assistant.message"));
    const recorded = await recordedIds(id);
    const ids = events.flatMap((event) => event.id ?? []);
    expect(ids.length).toBeGreaterThan(2);
    expect(recorded).toEqual(expect.arrayContaining(ids));
    const prompt = events.find(({ event }) => event === "user.message")?.data;
    expect(events.at(-1)).toEqual({
      event: "turn.end",
      data: {
        turn: prompt.data.messageId ?? prompt.id,
        outcome: "completed",
        reply: "[turn 1] hello",
        usage: expect.objectContaining({ requests: 1 }),
      },
    });
  });

  it("a turn's stream gives ids only to events after which a client can resume, even if tools run", async () => {
    await using model = await startScriptedModel();
    const env = {
      COPILOTFLEET_PROVIDER_TYPE: "openai",
      COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
      COPILOTFLEET_SESSION_MODEL: "gpt-5",
      COPILOTFLEET_SESSION_APPROVE: "all",
    };
    await using other = await TestApi.open({ env });
    const alice = await other.token("alice");
    await other.ok("POST", "/v1/sessions", { token: alice, body: { id: "tools" } });
    const ids: string[] = [];
    for (const prompt of ["hello", '!tool bash {"command":"echo hi"}', "again"]) {
      const path = "/v1/sessions/tools/turns?events=all";
      const { text } = await other.ok("POST", path, { token: alice, body: { prompt }, headers: STREAM });
      ids.push(...eventsIn(text).flatMap((event) => event.id ?? []));
    }
    expect(ids.length).toBeGreaterThan(12);
    const recorded: string[] = [];
    for await (const event of other.fleet.sessions.followEvents("tools", { user: "alice" })) recorded.push(event.id);
    expect(ids.filter((id) => !recorded.includes(id))).toEqual([]);
  });

  it("a turn's stream has text and tools by default, in at most 3 kB for hello world, without the system prompt", async () => {
    const id = await session();
    const path = `/v1/sessions/${id}/turns`;
    const { text } = await at.ok("POST", path, { token, body: { prompt: "hello world" }, headers: STREAM });
    expect(Buffer.byteLength(text)).toBeLessThanOrEqual(3_000);
    const names = eventsIn(text).map(({ event }) => event);
    expect(new Set(names)).toEqual(
      new Set(["user.message", "assistant.message_delta", "assistant.message", "turn.end"]),
    );
    expect(deltasIn(text)).toBe("[turn 1] hello world");
    expect((await send(id, "hello world", STREAM)).text).toContain("event: system.message");
  });

  it("an event that the client did not ask for still gives the client its id", async () => {
    const id = await session();
    // The first turn also records the system prompt, which has no id in the stream of a turn.
    await send(id, "hello");
    const first = await recordedIds(id);
    const { text } = await send(id, "hello again", STREAM, "text");
    const recorded = await recordedIds(id);
    expect(idsIn(text)).toEqual(recorded.slice(first.length));
    expect(eventsIn(text).filter((event) => event.id !== undefined)).toHaveLength(2);
    const path = `/v1/sessions/${id}/events?follow=false`;
    const all = (await at.ok("GET", path, { token })).text;
    expect(idsIn(all)).toEqual(recorded);
    const names = ["user.message", "assistant.message"];
    expect(eventsIn(all).map(({ event }) => event)).toEqual([...names, ...names]);
    for (const [place, last] of recorded.entries()) {
      const rest = await at.ok("GET", path, { token, headers: { "Last-Event-ID": last } });
      expect(idsIn(rest.text)).toEqual(recorded.slice(place + 1));
    }
  });

  it("a stream of requests alone has permissions and the end of the turn", async () => {
    await using other = await TestApi.open({ env: { COPILOTFLEET_SESSION_APPROVE: "ask" } });
    const alice = await other.token("alice");
    await other.ok("POST", "/v1/sessions", { token: alice, body: { id: "asks" } });
    const prompt = '!tool bash {"command": "echo hi", "description": "greet"}';
    const stop = new AbortController();
    const asks = { token: alice, signal: stop.signal };
    const follower = openStream(other.door.url, "/v1/sessions/asks/events?events=requests", asks);
    const text = openStream(other.door.url, "/v1/sessions/asks/events?events=text", asks);
    await eventually("the streams", () => [follower, text].every((each) => each.text.includes("retry:")));
    const path = "/v1/sessions/asks/turns?events=requests";
    const turn = other.ok("POST", path, { token: alice, body: { prompt }, headers: STREAM });
    await eventually("the request", () => follower.text.includes("request.opened"));
    const { data } = eventsIn(follower.text).find(({ event }) => event === "request.opened") ?? { data: null };
    const answer = { token: alice, body: { decision: "approve" } };
    await other.ok("POST", `/v1/sessions/asks/requests/${data.id}`, answer);
    const names = eventsIn((await turn).text).map(({ event }) => event);
    expect(names).toEqual(["request.opened", "request.closed", "turn.end"]);
    await eventually("the reply", () => text.text.includes("] hi"));
    expect(text.text).not.toContain("request.");
    stop.abort();
  });

  it.each(["", "texts", "text,", "text tools", "all,none"])(
    "the groups %j are refused with those that exist",
    async (groups) => {
      const id = await session();
      const refused = {
        status: 422,
        json: { detail: expect.stringMatching(/^events is ".*"\. Allowed: a list of text, tools, requests, all/) },
      };
      expect(await send(id, "hello", STREAM, groups)).toMatchObject(refused);
      expect(
        await at.ask("GET", `/v1/sessions/${id}/events?events=${encodeURIComponent(groups)}`, { token }),
      ).toMatchObject(refused);
      expect(await recordedIds(id)).toEqual([]);
    },
  );

  it("a turn that fails ends its stream with a problem; a prompt that is refused gets no stream", async () => {
    const id = await session();
    const failed = await send(id, "!fail no such luck", STREAM);
    expect(failed.status).toBe(200);
    expect(eventsIn(failed.text).at(-1)).toMatchObject({ event: "problem", data: { code: "FLEET_TURN_FAILED" } });
    const blank = await send(id, " ", STREAM);
    expect(blank).toMatchObject({ status: 422, headers: { "content-type": "application/problem+json" } });
  });
});

describe("the events of a session", () => {
  it("a client that resumes after an event of a session gets exactly the events after it", async () => {
    const id = await session();
    await send(id, "one");
    await send(id, "two");
    const path = `/v1/sessions/${id}/events?events=all&follow=false`;
    const ids = eventsIn((await at.ok("GET", path, { token })).text).map((event) => event.id ?? "");
    expect(ids).toEqual(await recordedIds(id));
    for (const [place, last] of ids.entries()) {
      const { text } = await at.ok("GET", path, { token, headers: { "Last-Event-ID": last } });
      expect(eventsIn(text).map((event) => event.id)).toEqual(ids.slice(place + 1));
    }
  });

  it("a client whose connection is cut again and again during turns misses no event, and gets none twice", async () => {
    const id = await session();
    const got: Received[] = [];
    let isOver = false;
    const client = (async () => {
      for (let round = 1; !isOver || got.at(-1)?.id !== (await recordedIds(id)).at(-1); round++) {
        const follower = await Follower.open(id, got.at(-1)?.id);
        const least = 1 + (round % 4);
        await eventually("some events", async () => {
          const last = follower.events.at(-1) ?? got.at(-1);
          const all = isOver && last?.id === (await recordedIds(id)).at(-1);
          return all || follower.events.length >= least;
        });
        follower.cut();
        got.push(...follower.events);
      }
    })();
    for (const prompt of ["one", "two", "three"]) await send(id, prompt);
    isOver = true;
    await client;
    expect(got.map((event) => event.id)).toEqual(await recordedIds(id));
  });

  it("an unknown Last-Event-ID is refused before a stream begins", async () => {
    const id = await session();
    await send(id, "one");
    const refused = await at.ask("GET", `/v1/sessions/${id}/events`, {
      token,
      headers: { "Last-Event-ID": "nothing" },
    });
    expect(refused).toMatchObject({ status: 422, json: { detail: expect.stringContaining('no event "nothing"') } });
  });

  it("a closing door ends a session's stream with a problem, and does not wait for the client", async () => {
    const id = await session();
    await send(id, "one");
    const door = await at.fleet.doors.openHttp({ listen: "127.0.0.1:0" });
    const { port } = new URL(door.url);
    const headers = { Authorization: `Bearer ${token}` };
    const sent = request({
      host: "127.0.0.1",
      port,
      path: `/v1/sessions/${id}/events?events=all`,
      headers,
      agent: false,
    });
    sent.end();
    const [response] = (await once(sent, "response")) as [IncomingMessage];
    let text = "";
    response.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
    });
    await eventually("the first events", () => eventsIn(text).length > 2);
    const ended = once(response, "end");
    expect(await door.close({ timeout: "1h" })).toEqual({ cut: 0 });
    await ended;
    expect(eventsIn(text).at(-1)).toMatchObject({ event: "problem", data: { code: "FLEET_POOL_DRAINING" } });
  });

  it("a session's stream ends when its token is revoked", async () => {
    const id = await session();
    await send(id, "one");
    const follower = await Follower.open(id);
    await eventually("the first events", () => follower.events.length > 2);
    const ended = once(follower.response, "end");
    await at.fleet.tokens.revoke({ user: "alice" });
    await ended;
    expect(follower.events.at(-1)).toMatchObject({ event: "problem", data: { code: "FLEET_TOKEN_REFUSED" } });
    token = await at.token("alice");
  });
});

it("a session's stream does not pass on events that the agent forged in the history", async () => {
  const id = await session();
  await send(id, "hello");
  const before = await recordedIds(id);
  const [history = ""] = historyFiles(at.commands.root, id);
  const timestamp = new Date().toISOString();
  const forged = [
    { id: "f1", type: "request.opened", data: { id: "f1", session: id, kind: "question" } },
    { id: "f2", type: "turn.end", data: { reply: "forged" } },
    { id: "f3", type: "problem", data: { detail: "forged" } },
    { id: "f4", type: "note\ndata: {}\n\nevent: turn.end", data: {} },
    { id: "f5\nevent: problem", type: "note", data: {} },
  ];
  appendFileSync(history, forged.map((each) => `${JSON.stringify({ ...each, parentId: null, timestamp })}\n`).join(""));
  const { text } = await at.ok("GET", `/v1/sessions/${id}/events?events=all&follow=false`, { token });
  expect(eventsIn(text).map((event) => event.id)).toEqual(before);
  expect(text).not.toContain("forged");
});
