import { mkdtemp, readdir } from "node:fs/promises";
import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Express } from "express";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { analyzeApp } from "../../examples/analyze.js";
import { chatApp } from "../../examples/chat.js";
import { conversationApp } from "../../examples/conversation.js";
import { teamChatApp } from "../../examples/team-chat.js";
import { Fleet } from "../../src/index.js";
import { PendingReply } from "../../src/sessions/use/reply.js";
import { portVariables, testPorts } from "../fixtures/fleets/ports.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { unused } from "../fixtures/sessions/unused.js";

/**
 * Tests the example applications, which are the guide's applications rewritten. Where several copies of a service run, they
 * share one state folder, as behind a load balancer.
 */

function withResolvers<T>() {
  let resolve: (value: T) => void = () => undefined;
  const promise = new Promise<T>((fulfil) => {
    resolve = fulfil;
  });
  return { promise, resolve };
}

let folder: string;
const fleets: Fleet[] = [];
const servers: Server[] = [];

/** @param home the state folder, below the folder of this file's tests */
async function openFleet(home = "state"): Promise<Fleet> {
  const fleet = await Fleet.open({
    cwd: folder,
    env: {
      ...process.env,
      COPILOTFLEET_HOME: join(folder, home),
      COPILOTFLEET_PROVIDER_TYPE: "echo",
      ...portVariables(testPorts()),
      COPILOT_OFFLINE: "true",
    },
  });
  fleets.push(fleet);
  return fleet;
}

async function start(app: Express): Promise<string> {
  const server = await new Promise<Server>((resolve) => {
    const listening = app.listen(0, "127.0.0.1", () => resolve(listening));
  });
  servers.push(server);
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function post(
  url: string,
  user: string,
  body: unknown,
): Promise<{ status: number; body: Record<string, unknown> }> {
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", "x-authenticated-user": user },
    body: JSON.stringify(body),
  });
  return { status: response.status, body: (await response.json()) as Record<string, unknown> };
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "copilotfleet-examples-"));
});

afterAll(async () => {
  for (const server of servers) server.close();
  for (const fleet of new Map(fleets.map((each) => [each.stateRoot, each])).values()) {
    const running = (await fleet.servers()).filter(({ pid }) => pid !== null);
    await fleet.stop(
      running.map(({ id }) => id),
      { force: true },
    );
  }
  await Promise.all(fleets.map((open) => open.close()));
  await removeFolder(folder);
});

describe("/chat", () => {
  it("/chat keeps one conversation for each user across two copies of the service", async () => {
    const [one, two] = [await start(chatApp(await openFleet())), await start(chatApp(await openFleet()))];
    const [alice, bob] = [unused("alice"), unused("bob")];
    expect((await post(`${one}/chat`, alice, { message: "hi" })).body).toEqual({ content: "[turn 1] hi" });
    expect((await post(`${two}/chat`, alice, { message: "more" })).body).toEqual({ content: "[turn 2] more" });
    expect((await post(`${two}/chat`, bob, { message: "hi" })).body).toEqual({ content: "[turn 1] hi" });
  });

  it("/chat answers 400 to an invalid user id", async () => {
    const url = await start(chatApp(await openFleet()));
    const { status, body } = await post(`${url}/chat`, "../etc", { message: "hi" });
    expect(status).toBe(400);
    expect(body).toMatchObject({ error: { code: "FLEET_USER_INVALID" } });
  });
});

describe("every service", () => {
  const raw = async (url: string, init: RequestInit): Promise<{ status: number; type: string; body: unknown }> => {
    const response = await fetch(url, { method: "POST", ...init });
    return {
      status: response.status,
      type: response.headers.get("content-type") ?? "",
      body: await response.json(),
    };
  };
  const alice = { "content-type": "application/json", "x-authenticated-user": "alice" };
  const services = [
    ["/chat", chatApp, "message"],
    ["/team-chat", (fleet: Fleet) => teamChatApp(fleet, ["alice"]), "message"],
    ["/api/analyze", analyzeApp, "prompt"],
    ["/api/chat/message", conversationApp, "sessionId"],
    ["/api/chat/end", conversationApp, "sessionId"],
  ] as const;

  it.each(services)("%s answers 401 to a request without an identity", async (path, app, field) => {
    const url = await start(app(await openFleet()));
    const init = { headers: { "content-type": "application/json" }, body: JSON.stringify({ [field]: "hi" }) };
    expect(await raw(`${url}${path}`, init)).toMatchObject({
      status: 401,
      type: expect.stringContaining("application/json"),
      body: { error: { code: "UNAUTHENTICATED" } },
    });
  });

  it.each(services)("%s answers 400 to a request with a body that it cannot use", async (path, app, field) => {
    const url = await start(app(await openFleet()));
    for (const body of ["{", "null", "[]", "{}", `{"${field}":""}`, `{"${field}":7}`, `{"${field}":{"a":1}}`]) {
      expect(await raw(`${url}${path}`, { headers: alice, body }), body).toMatchObject({
        status: 400,
        type: expect.stringContaining("application/json"),
        body: { error: { code: "BAD_REQUEST", message: expect.any(String) } },
      });
    }
    const plain = { headers: { ...alice, "content-type": "text/plain" }, body: "hi" };
    expect(await raw(`${url}${path}`, plain)).toMatchObject({ status: 400 });
  });

  it("a service answers in JSON to a path that it does not have and to a body that is too large", async () => {
    const url = await start(chatApp(await openFleet()));
    const json = { type: expect.stringContaining("application/json") };
    expect(await raw(`${url}/nothing`, { headers: alice })).toMatchObject({ status: 404, ...json });
    const large = JSON.stringify({ message: "x".repeat(200_000) });
    expect(await raw(`${url}/chat`, { headers: alice, body: large })).toMatchObject({ status: 413, ...json });
  });

  it("a service that fails answers 500 in JSON, and logs the reason without sending it", async () => {
    const fleet = await openFleet();
    vi.spyOn(fleet.sessions, "list").mockRejectedValue(new Error("secret"));
    const url = await start(chatApp(fleet));
    const logged = vi.spyOn(console, "error").mockImplementation(() => undefined);
    const answer = await raw(`${url}/chat`, { headers: alice, body: '{"message":"hi"}' });
    expect(answer).toMatchObject({ status: 500, body: { error: { code: "INTERNAL" } } });
    expect(JSON.stringify(answer)).not.toContain("secret");
    expect(logged).toHaveBeenCalledWith(expect.objectContaining({ message: "secret" }));
    logged.mockRestore();
  });
});

describe("/chat as server-sent events", () => {
  const ask = async (url: string, user: string, message: string, signal: AbortSignal | null = null) =>
    await fetch(`${url}/chat`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-authenticated-user": user, accept: "text/event-stream" },
      body: JSON.stringify({ message }),
      signal,
    });

  it("/chat streams the pieces of a reply, and they add up to the whole reply at the end", async () => {
    const url = await start(chatApp(await openFleet()));
    const response = await ask(url, unused("streamer"), "one two three");
    expect(response.headers.get("content-type")).toBe("text/event-stream");
    const events = (await response.text())
      .trim()
      .split("\n\n")
      .map((event) => /^event: (\w+)\ndata: (.*)$/.exec(event)?.slice(1) ?? []);
    const deltas = events.filter(([name]) => name === "delta").map(([, data = ""]) => JSON.parse(data).text);
    expect(deltas.length).toBeGreaterThan(1);
    expect(deltas.join("")).toBe("[turn 1] one two three");
    expect(events.at(-1)).toEqual(["end", '{"content":"[turn 1] one two three"}']);
  });

  it("/chat answers 401 to a request for a stream without an identity", async () => {
    const url = await start(chatApp(await openFleet()));
    expect((await ask(url, "", "hi")).status).toBe(401);
  });

  it("/chat sends an error event in its stream when the session does not exist", async () => {
    const fleet = await openFleet();
    const session = await fleet.createSession({ user: "streamer", purpose: "chat" });
    await fleet.leaveSession(session);
    const [known] = await fleet.sessions("streamer");
    vi.spyOn(fleet.sessions, "list").mockResolvedValue(known === undefined ? [] : [{ ...known, id: "gone" }]);
    const url = await start(chatApp(fleet));
    const text = await (await ask(url, "streamer", "hi")).text();
    expect(text).toMatch(/^event: error\ndata: .*FLEET_SESSION_NOT_FOUND/);
  });

  it("/chat ends the turn when the client of its stream hangs up", async () => {
    const fleet = await openFleet();
    const url = await start(chatApp(fleet));
    const begun = withResolvers<AbortSignal>();
    vi.spyOn(fleet.sessions, "use").mockImplementation((_id, _prompt, { signal }) => {
      if (signal === undefined) throw new Error("the turn has no signal");
      begun.resolve(signal);
      return new PendingReply(
        async () => await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason))),
      );
    });
    const caller = new AbortController();
    const response = await ask(url, "streamer", "hi", caller.signal);
    const turn = await begun.promise;
    expect(turn.aborted).toBe(false);
    caller.abort();
    await expect(response.text()).rejects.toThrow();
    await expect.poll(() => turn.aborted).toBe(true);
  });
});

describe("/team-chat", () => {
  it("/team-chat answers each member's own message, keeps one history for all, and answers a stranger with 404", async () => {
    const team = ["alice", "bob", "carol"];
    const home = unused("team");
    const urls = await Promise.all(team.map(async () => await start(teamChatApp(await openFleet(home), team))));
    const asked = team.flatMap((user, index) => [0, 1, 2].map((round) => ({ user, index, text: `${user} ${round}` })));
    const replies = await Promise.all(
      asked.map(async ({ user, index, text }) => ({
        text,
        ...(await post(`${urls[index]}/team-chat`, user, { message: text })),
      })),
    );
    for (const { text, body } of replies) expect(body.content).toMatch(new RegExp(`^\\[turn \\d+\\] ${text}$`));
    const turns = replies.map(({ body }) => Number(/\d+/.exec(String(body.content))?.[0])).sort((a, b) => a - b);
    expect(turns).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect((await post(`${urls[0]}/team-chat`, "mallory", { message: "hi" })).status).toBe(404);
  });
});

describe("/api/analyze", () => {
  it("/api/analyze answers a prompt and leaves no session, not even on disk", async () => {
    const fleet = await openFleet();
    const url = await start(analyzeApp(fleet));
    expect((await post(`${url}/api/analyze`, "dora", { prompt: "sum" })).body).toEqual({ result: "[turn 1] sum" });
    expect((await post(`${url}/api/analyze`, "dora", { prompt: "sum" })).body).toEqual({ result: "[turn 1] sum" });
    expect(await fleet.sessions("dora")).toEqual([]);
    expect(await readdir(join((await fleet.serverOf("dora")).home, "session-state"))).toEqual([]);
  });
});

describe("/api/chat", () => {
  it("a conversation of /api/chat survives a crash of the server, is refused to others, and can be ended", async () => {
    const fleet = await openFleet();
    const url = await start(conversationApp(fleet));
    const { sessionId } = (await post(`${url}/api/chat/start`, "erin", {})).body;
    const say = async (user: string, message: string) =>
      await post(`${url}/api/chat/message`, user, { sessionId, message });
    expect((await say("erin", "one")).body).toEqual({ content: "[turn 1] one" });
    const { pid } = await fleet.serverOf("erin");
    if (pid !== null) process.kill(pid, "SIGKILL");
    expect((await say("erin", "two")).body).toEqual({ content: "[turn 2] two" });
    expect((await say("frank", "mine?")).status).toBe(404);
    expect((await post(`${url}/api/chat/end`, "frank", { sessionId })).status).toBe(404);
    expect((await say("erin", "three")).body).toEqual({ content: "[turn 3] three" });
    expect((await post(`${url}/api/chat/end`, "erin", { sessionId })).body).toEqual({ success: true });
    expect((await post(`${url}/api/chat/end`, "erin", { sessionId })).status).toBe(404);
    expect((await say("erin", "four")).status).toBe(404);
  });
});
