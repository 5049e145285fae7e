import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import {
  approveAll,
  type CopilotClient,
  type CopilotClientOptions,
  type CopilotRequestContext,
  CopilotRequestHandler,
  type CopilotSession,
  type SessionConfig,
  type SessionEvent,
} from "@github/copilot-sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { eventually } from "../fixtures/fault-fleet.js";

export interface Connected {
  /** A new client of the same user. */
  connect: () => Promise<CopilotClient>;
  /** What a client has to say of the model itself. */
  settings: Partial<SessionConfig>;
}

/** A request that this version of the SDK has no function for. */
async function request(client: CopilotClient, method: string, params: object): Promise<unknown> {
  const { connection } = client as unknown as { connection: { sendRequest(method: string, params: object): unknown } };
  return await connection.sendRequest(method, params);
}

/** What this client shows at `connect`. */
function tokenOf(client: CopilotClient): string | undefined {
  return (client as unknown as { effectiveConnectionToken?: string }).effectiveConnectionToken;
}

/** What lets a client do all of this at a front door. */
export const OPEN_TO_CLIENTS = { approve: "ask", host: "owner" } as const;

/** What a client can do at its own server, in the words of the unmodified SDK. */
export function describeClient(name: string, open: () => Promise<Connected & AsyncDisposable>): void {
  describe(`a client ${name}`, () => {
    let at: Connected & AsyncDisposable;
    let client: CopilotClient;
    beforeAll(async () => {
      at = await open();
      client = await at.connect();
    });
    afterAll(async () => {
      await at[Symbol.asyncDispose]();
    });

    const create = async (settings: Partial<SessionConfig> = {}, by = client): Promise<CopilotSession> =>
      await by.createSession({ onPermissionRequest: approveAll, ...at.settings, ...settings });
    const say = async (session: CopilotSession, prompt: string) =>
      (await session.sendAndWait(prompt, 20_000))?.data.content;

    it("pings and asks for the status", async () => {
      expect(await client.ping("hello")).toMatchObject({ message: "pong: hello", protocolVersion: 3 });
      expect(await client.getStatus()).toMatchObject({ protocolVersion: 3, version: expect.any(String) });
      expect(await client.getAuthStatus()).toMatchObject({ isAuthenticated: false });
    });

    it("creates a session and talks in it", async () => {
      const session = await create();
      expect(await say(session, "one")).toBe("you said: one");
      expect(await say(session, "two")).toBe("you said: two");
      const types = (await session.getEvents()).map(({ type }) => type);
      expect(types.filter((type) => type === "user.message")).toHaveLength(2);
      expect(types.filter((type) => type === "assistant.message")).toHaveLength(2);
    });

    it("takes the id that it wants", async () => {
      const session = await create({ sessionId: `wanted-${name}` });
      expect(session.sessionId).toBe(`wanted-${name}`);
      expect(await say(session, "hi")).toBe("you said: hi");
    });

    it("leaves a session and comes back to its history, in another connection too", async () => {
      const session = await create();
      await say(session, "remember");
      await session.disconnect();
      const other = await at.connect();
      const again = await other.resumeSession(session.sessionId, { onPermissionRequest: approveAll, ...at.settings });
      expect(await say(again, "more")).toBe("you said: more");
      const said = (await again.getEvents()).filter(({ type }) => type === "user.message");
      expect(said).toHaveLength(2);
      await other.stop();
    });

    it("lists, describes and deletes its sessions", async () => {
      const session = await create();
      await say(session, "hi");
      const listed = (await client.listSessions()).map(({ sessionId }) => sessionId);
      expect(listed).toContain(session.sessionId);
      expect(await client.getLastSessionId()).toBe(session.sessionId);
      expect(await client.getSessionMetadata(session.sessionId)).toMatchObject({ sessionId: session.sessionId });
      await client.deleteSession(session.sessionId);
      expect((await client.listSessions()).map(({ sessionId }) => sessionId)).not.toContain(session.sessionId);
      expect(await client.getSessionMetadata(session.sessionId)).toBeUndefined();
      await expect(client.resumeSession(session.sessionId, { onPermissionRequest: approveAll })).rejects.toThrow(
        /session not found/i,
      );
    });

    it("leaves a session by the method of older SDKs, and comes back to it", async () => {
      const session = await create();
      await say(session, "one");
      const sessionId = session.sessionId;
      const other = await at.connect();
      const watching = await other.resumeSession(sessionId, { onPermissionRequest: approveAll, ...at.settings });
      expect(await request(client, "session.destroy", { sessionId })).toMatchObject({ success: true });
      expect(await say(watching, "still here")).toBe("you said: still here");
      await other.stop();
      const again = await client.resumeSession(sessionId, { onPermissionRequest: approveAll, ...at.settings });
      expect(await say(again, "two")).toBe("you said: two");
      expect((await again.getEvents()).filter(({ type }) => type === "user.message")).toHaveLength(3);
    });

    it("leaves a session that was deleted, by itself or by another client", async () => {
      const session = await create();
      await say(session, "hi");
      const other = await at.connect();
      const watching = await other.resumeSession(session.sessionId, {
        onPermissionRequest: approveAll,
        ...at.settings,
      });
      await client.deleteSession(session.sessionId);
      await session.disconnect();
      await watching.disconnect();
      expect(await other.stop()).toEqual([]);
    });

    it("shuts a session down, and comes back to it", async () => {
      const session = await create();
      await say(session, "one");
      const shutDown = new Promise<SessionEvent>((resolve) => session.on("session.shutdown", resolve));
      await session.rpc.shutdown({});
      expect(await shutDown).toMatchObject({ data: { shutdownType: "routine" } });
      expect(await session.rpc.name.get()).toMatchObject({ name: "one" });
      await session.disconnect();
      const again = await client.resumeSession(session.sessionId, { onPermissionRequest: approveAll, ...at.settings });
      expect(await say(again, "two")).toBe("you said: two");
      expect((await again.getEvents()).filter(({ type }) => type === "user.message")).toHaveLength(2);
    });

    it("keeps a session in another folder of the home, and comes back to it there", async () => {
      const { workspacePath } = await create();
      const configDirectory = resolve(workspacePath ?? "", "../../apart");
      const settings = { onPermissionRequest: approveAll, ...at.settings, configDirectory };
      const session = await create(settings);
      const other = await at.connect();
      const unused = await other.resumeSession(session.sessionId, settings);
      await session.disconnect();
      expect(await say(unused, "one")).toBe("you said: one");
      await other.stop();
      expect(existsSync(join(configDirectory, "session-state", session.sessionId, "events.jsonl"))).toBe(true);
      const again = await client.resumeSession(session.sessionId, settings);
      expect(await say(again, "two")).toBe("you said: two");
      expect((await again.getEvents()).filter(({ type }) => type === "user.message")).toHaveLength(2);
      await expect(client.deleteSession(session.sessionId)).rejects.toThrow(/not found/);
      expect(await say(again, "three")).toBe("you said: three");
      await again.disconnect();
    });

    it("leaves out arguments", async () => {
      expect(await client.rpc.tools.list(undefined as never)).toMatchObject({ tools: expect.any(Array) });
      expect(await client.rpc.ping(undefined as never)).toMatchObject({ message: "pong", protocolVersion: 3 });
    });

    it("gives its tools schemas as deep as the runtime takes them", async () => {
      // With what is around it in `session.create`: 127 levels.
      const levels = 123;
      const parameters = JSON.parse(`${'{"properties":'.repeat(levels)}1${"}".repeat(levels)}`) as Record<
        string,
        unknown
      >;
      const session = await create({ tools: [{ name: "deep", description: "d", parameters, handler: () => "x" }] });
      expect(await say(session, "hi")).toBe("you said: hi");
    });

    it("gets the reply in pieces, in order", async () => {
      const session = await create({ streaming: true });
      const pieces: string[] = [];
      session.on("assistant.message_delta", ({ data }) => void pieces.push(data.deltaContent));
      const whole = Array.from({ length: 300 }, (_, index) => `word${index}`).join(" ");
      expect(await say(session, "!words 300")).toBe(whole);
      expect(pieces.join("")).toBe(whole);
      expect(pieces.length).toBeGreaterThan(10);
    });

    it("aborts a turn, and goes on", async () => {
      const session = await create();
      const idle = new Promise<SessionEvent>((resolve) => session.on("session.idle", resolve));
      const begun = new Promise((resolve) => session.on("assistant.turn_start", resolve));
      await session.send("!delay 20000 slow");
      await begun;
      await session.abort();
      expect(await idle).toMatchObject({ data: { aborted: true } });
      expect(await say(session, "next")).toBe("you said: next");
    });

    it("runs its own tools", async () => {
      const session = await create({
        tools: [
          {
            name: "weather",
            description: "tells the weather",
            parameters: { type: "object", properties: { city: { type: "string" } } },
            handler: async ({ city }: { city: string }) => `sunny in ${city}`,
          },
        ],
      });
      expect(await say(session, '!tool weather {"city":"Bern"}')).toBe("tool said: sunny in Bern");
    });

    it("is asked for permission, and its answer counts", async () => {
      const asked: string[] = [];
      let allow = false;
      const session = await create({
        onPermissionRequest: (request) => {
          asked.push(request.kind);
          return allow ? { kind: "approve-once" } : { kind: "reject" };
        },
      });
      const command = '!tool bash {"command":"echo permitted-output","description":"says it"}';
      expect(await say(session, command)).not.toMatch(/^tool said: permitted-output/);
      allow = true;
      expect(await say(session, command)).toContain("permitted-output");
      expect(asked).toEqual(["shell", "shell"]);
    });

    it("is asked for the user's input", async () => {
      const session = await create({
        onUserInputRequest: async ({ question }) => ({ answer: `yes to ${question}`, wasFreeform: true }),
      });
      expect(await say(session, '!tool ask_user {"question":"Really?"}')).toContain("yes to Really?");
    });

    it("has its hooks called", async () => {
      const called: string[] = [];
      const session = await create({
        hooks: {
          onSessionStart: () => void called.push("start"),
          onUserPromptSubmitted: () => void called.push("prompt"),
          onPreToolUse: ({ toolName }) => {
            called.push(`before ${toolName}`);
            return { permissionDecision: "deny", permissionDecisionReason: "the hook says no" };
          },
        },
      });
      expect(await say(session, '!tool bash {"command":"echo x","description":"x"}')).toContain("the hook says no");
      expect(called).toEqual(expect.arrayContaining(["prompt", "before bash"]));
    });

    it("has its hooks called, and is asked for permission, for the tools of a sub-agent", async () => {
      const called: string[] = [];
      const sessions = new Map<string, string>();
      const session = await create({
        hooks: {
          onPreToolUse: ({ toolName, sessionId }) => {
            called.push(`before ${toolName}`);
            sessions.set(toolName, sessionId);
          },
          onPostToolUse: ({ toolName }) => void called.push(`after ${toolName}`),
        },
        onPermissionRequest: ({ kind }) => {
          called.push(`permission for ${kind}`);
          return { kind: "approve-once" };
        },
      });
      const prompt = '!tool bash {"command":"echo from-the-sub-agent","description":"x"}';
      const task = { agent_type: "task", name: "helper", description: "x", prompt, mode: "sync" };
      expect(await say(session, `!tool task ${JSON.stringify(task)}`)).toContain("from-the-sub-agent");
      const order = ["before task", "before bash", "permission for shell", "after bash", "after task"];
      expect(called).toEqual(order);
      expect(sessions.get("task")).toBe(session.sessionId);
      expect(sessions.get("bash")).not.toBe(session.sessionId);
    });

    it("goes on when one of its own functions throws", async () => {
      const fail = (): never => {
        throw new Error("thrown by the client");
      };
      const command = '!tool bash {"command":"echo output","description":"x"}';
      const session = await create({
        tools: [{ name: "broken", description: "x", parameters: { type: "object" }, handler: fail }],
        hooks: { onPreToolUse: fail, onPostToolUse: fail },
        onUserInputRequest: fail,
        onElicitationRequest: fail,
      });
      expect(await say(session, "!tool broken {}")).toContain("Error: Tool execution failed");
      expect(await say(session, '!tool ask_user {"question":"Really?"}')).toContain("unable to respond");
      expect(await say(session, command)).toMatch(/^tool said: output/);
      const requestedSchema = { type: "object" as const, properties: {} };
      expect(await session.ui.elicitation({ message: "who?", requestedSchema })).toEqual({ action: "cancel" });
      const careful = await create({ onPermissionRequest: fail });
      expect(await say(careful, command)).toContain("Permission denied");
    });

    it("uses the MCP server of a plugin", async () => {
      const { workspacePath } = await create();
      const plugin = resolve(workspacePath ?? "", "../../plugin");
      await mkdir(plugin);
      await writeFile(join(plugin, "plugin.json"), JSON.stringify({ name: "echo-plugin", version: "1.0.0" }));
      const program = join(import.meta.dirname, "../fixtures/mcp-server.mjs");
      const mcpServers = { echoing: { command: process.execPath, args: [program] } };
      await writeFile(join(plugin, ".mcp.json"), JSON.stringify({ mcpServers }));
      const session = await create({ pluginDirectories: [plugin] });
      const server = async () => (await session.rpc.mcp.list()).servers.find(({ name }) => name === "echoing");
      await eventually("the MCP server", async () => (await server())?.status === "connected");
      expect(await server()).toMatchObject({ source: "plugin", sourcePlugin: "echo-plugin" });
      expect(await say(session, '!tool echoing-echo {"text":"hello"}')).toBe("tool said: MCP said: hello");
    });

    it("gets ephemeral events, which the history does not have", async () => {
      const session = await create();
      const other = await at.connect();
      const watching = await other.resumeSession(session.sessionId, {
        onPermissionRequest: approveAll,
        ...at.settings,
      });
      const heard: SessionEvent[] = [];
      watching.on("session.info", (event) => void heard.push(event));
      await session.log("passing", { ephemeral: true });
      await session.log("lasting");
      await eventually("both events at the other client", () => heard.length === 2);
      expect(heard).toMatchObject([
        { ephemeral: true, data: { message: "passing" } },
        { data: { message: "lasting" } },
      ]);
      expect(heard[1]).not.toHaveProperty("ephemeral");
      const kept = (await session.getEvents()).filter(({ type }) => type === "session.info");
      expect(kept).toEqual([heard[1]]);
      await other.stop();
    });

    it("sends attachments of several megabytes", async () => {
      const session = await create();
      const data = randomBytes(3 * 1024 * 1024).toString("base64");
      const attachments = [
        { type: "blob" as const, data, mimeType: "application/octet-stream", displayName: "big.bin" },
      ];
      const reply = await session.sendAndWait({ prompt: "look", attachments }, 30_000);
      expect(reply?.data.content).toContain("you said:");
      const sent = (await session.getEvents()).find(({ type }) => type === "user.message");
      expect(JSON.stringify(sent)).toContain("big.bin");
    });

    it("has many requests under way at once", async () => {
      const sessions = await Promise.all(Array.from({ length: 5 }, async () => await create()));
      const replies = await Promise.all([
        ...sessions.map(async (session, index) => await say(session, `n${index}`)),
        ...Array.from({ length: 50 }, async (_, index) => (await client.ping(String(index))).message),
      ]);
      expect(replies).toEqual([
        ...sessions.map((_, index) => `you said: n${index}`),
        ...Array.from({ length: 50 }, (_, index) => `pong: ${index}`),
      ]);
    });

    it("shares a session with another client of the same user, who hears it all", async () => {
      const session = await create();
      await say(session, "first");
      const other = await at.connect();
      const seen: string[] = [];
      const watching = await other.resumeSession(session.sessionId, {
        onPermissionRequest: approveAll,
        ...at.settings,
      });
      watching.on("assistant.message", ({ data }) => void seen.push(data.content));
      // The SDK goes by the event alone: a prompt takes the end of the turn before it for its own.
      const over = new Promise((resolve) => watching.on("session.idle", resolve));
      expect(await say(session, "second")).toBe("you said: second");
      await over;
      await eventually("the event at the other client", () => seen.includes("you said: second"));
      const heard = new Promise((resolve) => session.on("session.idle", resolve));
      expect(await say(watching, "third")).toBe("you said: third");
      await heard;
      await other.stop();
      expect(await say(session, "fourth")).toBe("you said: fourth");
    });

    it("has each tool run by the client that brought it, as long as that is there", async () => {
      const tool = (name: string) => ({
        name,
        description: name,
        parameters: { type: "object", properties: {} },
        handler: async () => `from ${name}`,
      });
      const session = await create({ tools: [tool("first")] });
      await say(session, "hi");
      const other = await at.connect();
      await other.resumeSession(session.sessionId, {
        onPermissionRequest: approveAll,
        ...at.settings,
        tools: [tool("second")],
      });
      expect(await say(session, "!tool second {}")).toBe("tool said: from second");
      expect(await say(session, "!tool first {}")).toBe("tool said: from first");
      await other.stop();
      expect(await say(session, "!tool second {}")).toMatch(/disconnected|does not exist/);
      expect(await say(session, "!tool first {}")).toBe("tool said: from first");
    });

    it("is asked what a form asks for", async () => {
      const session = await create({
        onElicitationRequest: async ({ message }) => ({ action: "accept", content: { name: `re: ${message}` } }),
      });
      expect(session.capabilities.ui).toMatchObject({ elicitation: true });
      const requestedSchema = { type: "object" as const, properties: { name: { type: "string" as const } } };
      expect(await session.ui.elicitation({ message: "who?", requestedSchema })).toEqual({
        action: "accept",
        content: { name: "re: who?" },
      });
    });

    it("queues prompts during a turn, and takes one back", async () => {
      let goOn = (_: string): void => undefined;
      const going = new Promise<string>((resolve) => {
        goOn = resolve;
      });
      const hold = { name: "hold", description: "x", parameters: { type: "object" }, handler: async () => await going };
      const session = await create({ tools: [hold] });
      const idle = new Promise((resolve) => session.on("session.idle", resolve));
      await session.send("!tool hold {}");
      await session.send("two");
      await session.send("three");
      expect(await session.rpc.queue.removeMostRecent()).toMatchObject({ removed: true });
      goOn("on");
      await idle;
      const said = (await session.getEvents()).filter(({ type }) => type === "user.message");
      expect(said.map(({ data }) => (data as { content?: string }).content)).toEqual(["!tool hold {}", "two"]);
    });

    it("forks a session, and goes on in the fork", async () => {
      const session = await create();
      await say(session, "common");
      const { sessionId } = await client.rpc.sessions.fork({ sessionId: session.sessionId });
      const fork = await client.resumeSession(sessionId, { onPermissionRequest: approveAll, ...at.settings });
      expect(await say(fork, "apart")).toBe("you said: apart");
      expect((await fork.getEvents()).filter(({ type }) => type === "user.message")).toHaveLength(2);
      expect((await session.getEvents()).filter(({ type }) => type === "user.message")).toHaveLength(1);
    });

    it("connects a second time with the same token, and not with another one", async () => {
      const connect = async (token: string | undefined) =>
        await request(client, "connect", { token, supportedTaskKinds: [] });
      const greeting = await connect(tokenOf(client));
      expect(greeting).toMatchObject({ ok: true, protocolVersion: 3, version: expect.any(String) });
      expect(await connect(tokenOf(client))).toEqual(greeting);
      await expect(connect("wrong")).rejects.toMatchObject({ code: -32002, message: "AUTHENTICATION_FAILED" });
      await expect(connect(undefined)).rejects.toMatchObject({ code: -32002 });
      expect(await client.ping("still here")).toMatchObject({ message: "pong: still here" });
    });

    it("has no foreground session at a headless server", async () => {
      const { sessionId } = await create();
      expect(await client.getForegroundSessionId()).toBeUndefined();
      await expect(client.setForegroundSessionId(sessionId)).rejects.toThrow(/Not running in TUI\+server mode/);
      expect(await client.getForegroundSessionId()).toBeUndefined();
    });

    it("is told that a session which does not exist cannot be deleted", async () => {
      expect(await request(client, "session.delete", { sessionId: "never-was" })).toEqual({
        success: false,
        error: "Session file not found for never-was",
      });
      await expect(client.deleteSession("never-was")).rejects.toThrow(/Session file not found/);
    });

    it("deletes several sessions at once, and is told what that freed", async () => {
      const sessions = [await create(), await create()];
      for (const session of sessions) await say(session, "hi");
      const ids = sessions.map(({ sessionId }) => sessionId);
      const { freedBytes } = await client.rpc.sessions.bulkDelete({ sessionIds: [...ids, "never-was"] });
      expect(freedBytes).toEqual({
        [String(ids[0])]: expect.any(Number),
        [String(ids[1])]: expect.any(Number),
        "never-was": 0,
      });
      expect(freedBytes[String(ids[0])]).toBeGreaterThan(0);
      const listed = (await client.listSessions()).map(({ sessionId }) => sessionId);
      expect(listed.filter((id) => ids.includes(id))).toEqual([]);
      await expect(request(client, "sessions.bulkDelete", {})).rejects.toThrow(/non-array parameter 'sessionIds'/);
      await expect(client.rpc.sessions.bulkDelete({ sessionIds: ["a/b"] })).rejects.toThrow(
        /Invalid sessionId: "a\/b"/,
      );
    });

    it("is told which sessions are old, and deletes those", async () => {
      const session = await create();
      await say(session, "hi");
      await session.disconnect();
      const { sessionId } = session;
      const others = (await client.listSessions()).map((listed) => listed.sessionId).filter((id) => id !== sessionId);
      const asked = { olderThanDays: 0, includeNamed: true, excludeSessionIds: others };
      const plan = await client.rpc.sessions.pruneOld({ ...asked, dryRun: true });
      expect(plan).toMatchObject({ candidates: [sessionId], deleted: [], skipped: [], dryRun: true });
      expect(await client.getSessionMetadata(sessionId)).toMatchObject({ sessionId });
      expect(await client.rpc.sessions.pruneOld(asked)).toEqual({
        deleted: [sessionId],
        candidates: [],
        skipped: [],
        freedBytes: expect.any(Number),
        dryRun: false,
      });
      expect(await client.getSessionMetadata(sessionId)).toBeUndefined();
      await expect(request(client, "sessions.pruneOld", {})).rejects.toThrow(/parameter 'olderThanDays'/);
    });

    it("is told that remote control is off", async () => {
      expect(await client.rpc.sessions.getRemoteControlStatus()).toEqual({ status: { state: "off" } });
    });

    it("is told that a method does not exist", async () => {
      await expect(request(client, "session.brandNew", { sessionId: "x" })).rejects.toMatchObject({
        code: -32601,
        message: expect.stringMatching(/^Unhandled method "?session\.brandNew/),
      });
    });

    it("gets the server's own errors", async () => {
      await expect(client.resumeSession("never-was", { onPermissionRequest: approveAll })).rejects.toThrow(
        /session not found/i,
      );
      const session = await create();
      await expect(session.rpc.mode.set({ mode: "bogus" as "plan" })).rejects.toThrow(/bogus|mode/);
    });

    it("changes the model, the mode and the name of a session", async () => {
      const session = await create();
      await session.rpc.model.switchTo({ modelId: "gpt-4.1" });
      expect(await session.rpc.model.getCurrent()).toMatchObject({ modelId: "gpt-4.1" });
      await session.rpc.name.set({ name: "my name" });
      expect(await session.rpc.name.get()).toMatchObject({ name: "my name" });
    });
  });
}

interface AskedOfHandler {
  url: string;
  sessionId: string | undefined;
  key: string | null;
}

/** Answers every prompt but "wait", for which it waits until the runtime calls the request off. */
class Handler extends CopilotRequestHandler {
  readonly asked: AskedOfHandler[] = [];
  calledOff = 0;

  protected override async sendRequest(request: Request, { sessionId, signal }: CopilotRequestContext) {
    this.asked.push({ url: request.url, sessionId, key: request.headers.get("authorization") });
    if ((await request.text()).includes("please wait")) {
      await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
      this.calledOff++;
      throw new Error("called off");
    }
    if (request.url.endsWith("/messages")) return citing();
    const chunk = (choice: object) => `data: ${JSON.stringify({ id: "c", choices: [{ index: 0, ...choice }] })}\n\n`;
    const said = chunk({ delta: { role: "assistant", content: "from the handler" }, finish_reason: null });
    const end = chunk({ delta: {}, finish_reason: "stop" });
    return new Response(`${said}${end}data: [DONE]\n\n`, { headers: { "content-type": "text/event-stream" } });
  }
}

/** A streamed answer of an Anthropic model that cites the client's document. */
function citing(): Response {
  const citation = {
    type: "char_location",
    cited_text: "The sky is green.",
    document_index: 0,
    document_title: "facts.txt",
    start_char_index: 0,
    end_char_index: 17,
  };
  const usage = { input_tokens: 1, output_tokens: 1 };
  const message = { id: "m", type: "message", role: "assistant", model: "m", content: [], stop_reason: null, usage };
  const events = [
    { type: "message_start", message },
    { type: "content_block_start", index: 0, content_block: { type: "text", text: "", citations: [] } },
    { type: "content_block_delta", index: 0, delta: { type: "text_delta", text: "green" } },
    { type: "content_block_delta", index: 0, delta: { type: "citations_delta", citation } },
    { type: "content_block_stop", index: 0 },
    { type: "message_delta", delta: { stop_reason: "end_turn", stop_sequence: null }, usage },
    { type: "message_stop" },
  ];
  const body = events.map((event) => `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`).join("");
  return new Response(body, { headers: { "content-type": "text/event-stream" } });
}

/** What a client can do that answers the model's requests itself, at a server without credentials. */
export function describeRequestHandler(
  name: string,
  open: () => Promise<{ connect: (options: CopilotClientOptions) => Promise<CopilotClient> } & AsyncDisposable>,
): void {
  describe(`a client ${name} that answers the model's requests`, () => {
    const handler = new Handler();
    let at: Awaited<ReturnType<typeof open>>;
    let client: CopilotClient;
    beforeAll(async () => {
      at = await open();
      client = await at.connect({ requestHandler: handler });
    });
    afterAll(async () => {
      await at[Symbol.asyncDispose]();
    });

    const create = async (credentials: object) =>
      await client.createSession({
        onPermissionRequest: approveAll,
        provider: { type: "openai", wireApi: "completions", baseUrl: "http://model.invalid/v1", ...credentials },
        model: "gpt-5",
        streaming: true,
      });

    it("gets them with the session's id and key, and its answers count", async () => {
      const session = await create({ apiKey: "own-key" });
      expect((await session.sendAndWait("hi", 20_000))?.data.content).toBe("from the handler");
      const url = "http://model.invalid/v1/chat/completions";
      expect(handler.asked).toContainEqual({ url, sessionId: session.sessionId, key: "Bearer own-key" });
    });

    it("gets them with the token that it gives for each of them", async () => {
      let given = 0;
      const session = await create({ bearerTokenProvider: async () => await Promise.resolve(`token-${++given}`) });
      for (const prompt of ["one", "two"]) await session.sendAndWait(prompt, 20_000);
      const keys = handler.asked.filter(({ sessionId }) => sessionId === session.sessionId).map(({ key }) => key);
      expect(keys).toEqual(expect.arrayContaining(["Bearer token-1", "Bearer token-2"]));
    });

    it("gets the citations of an answer", async () => {
      const session = await client.createSession({
        onPermissionRequest: approveAll,
        provider: { type: "anthropic", baseUrl: "http://model.invalid", apiKey: "own-key" },
        model: "claude-sonnet-4.5",
        streaming: true,
        enableCitations: true,
      });
      const data = Buffer.from("The sky is green.").toString("base64");
      const attachments = [{ type: "blob" as const, data, mimeType: "text/plain", displayName: "facts.txt" }];
      const reply = await session.sendAndWait({ prompt: "Which colour?", attachments }, 20_000);
      expect(reply?.data).toMatchObject({
        content: "green",
        citations: {
          sources: [{ provider: "anthropic", title: "facts.txt" }],
          spans: [{ startIndex: 0, endIndex: 5, references: [{ citedText: "The sky is green." }] }],
        },
      });
    });

    it("is told when its answer is no longer wanted", async () => {
      const session = await create({ apiKey: "own-key" });
      const before = handler.asked.length;
      await session.send("please wait");
      await eventually("the model's request", () => handler.asked.length > before);
      await session.abort();
      await eventually("the end of the request", () => handler.calledOff > 0);
    });

    it("is told that nobody waits for an answer", async () => {
      const requestId = "never-was";
      const start = { requestId, status: 200, headers: {} };
      expect(await client.rpc.llmInference.httpResponseStart(start)).toMatchObject({ accepted: false });
      const chunk = { requestId, data: "", binary: false, end: true };
      expect(await client.rpc.llmInference.httpResponseChunk(chunk)).toMatchObject({ accepted: false });
    });
  });
}
