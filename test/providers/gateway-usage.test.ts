import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import type { Consumer, LedgerLine, UsageNumbers } from "../../src/base/usage.js";
import { limitReached } from "../../src/base/user-limits.js";
import type { RemoteProvider } from "../../src/config/schema.js";
import { ModelGateway } from "../../src/providers/gateway/gateway.js";
import { AnswerUsage, modelIn } from "../../src/providers/gateway/request-meter.js";

const events = (...all: object[]) => all.map((each) => `data: ${JSON.stringify(each)}\n\n`);
const DONE = "data: [DONE]\n\n";

const COMPLETIONS = [
  ...events({ choices: [{ delta: { content: '{"usage": {"prompt_tokens": 9}}\n' } }], usage: null }),
  ...events({
    choices: [],
    usage: { prompt_tokens: 100, completion_tokens: 7, prompt_tokens_details: { cached_tokens: 40 } },
  }),
  DONE,
];
const RESPONSES = events(
  { type: "response.created", response: { usage: null } },
  {
    type: "response.completed",
    response: { usage: { input_tokens: 100, input_tokens_details: { cached_tokens: 40 }, output_tokens: 7 } },
  },
);
const MESSAGES = events(
  {
    type: "message_start",
    message: {
      usage: { input_tokens: 55, cache_read_input_tokens: 40, cache_creation_input_tokens: 5, output_tokens: 1 },
    },
  },
  { type: "message_delta", delta: { stop_reason: "end_turn" }, usage: { output_tokens: 7 } },
  { type: "message_stop" },
);
const REPORTED = { inputTokens: 100, outputTokens: 7, cacheReadTokens: 40, credits: null };
const STREAM = "text/event-stream; charset=utf-8";

function read(contentType: string, pieces: readonly string[]) {
  const usage = new AnswerUsage(contentType);
  for (const piece of pieces) usage.push(Buffer.from(piece));
  const { hasLast } = usage;
  usage.end();
  return { numbers: usage.numbers, hasLast };
}

describe("the usage in an answer", () => {
  it.each([
    ["completions", COMPLETIONS],
    ["responses", RESPONSES],
    ["messages", MESSAGES],
  ])("the usage in a streamed answer of %s is the same wherever the stream is cut into pieces", (_, stream) => {
    const text = stream.join("");
    for (let at = 1; at < text.length; at++) {
      const found = read(STREAM, [text.slice(0, at), text.slice(at)]);
      expect(found).toEqual({ numbers: REPORTED, hasLast: true });
    }
    expect(read(STREAM, [...text]).numbers).toEqual(REPORTED);
  });

  it.each([
    [
      "completions",
      { usage: { prompt_tokens: 100, completion_tokens: 7, prompt_tokens_details: { cached_tokens: 40 } } },
    ],
    ["responses", { usage: { input_tokens: 100, input_tokens_details: { cached_tokens: 40 }, output_tokens: 7 } }],
    ["messages", { usage: { input_tokens: 60, cache_read_input_tokens: 40, output_tokens: 7 } }],
  ])("the usage in a JSON answer of %s is found, even if the JSON has several lines", (_, answer) => {
    const text = JSON.stringify(answer, null, 2);
    expect(read("application/json", [text.slice(0, 30), text.slice(30)]).numbers).toEqual(REPORTED);
  });

  it("the usage in an answer is null if the service reports no usage, or a value that is not a count", () => {
    const nothing = { inputTokens: null, outputTokens: null, cacheReadTokens: null, credits: null };
    expect(read(STREAM, [DONE])).toEqual({ numbers: nothing, hasLast: true });
    expect(read("application/json", ['{"usage":{"prompt_tokens":"12","completion_tokens":-1}}']).numbers).toEqual(
      nothing,
    );
    expect(read("application/json", ['{"usage":{"prompt_tokens":1']).numbers).toEqual(nothing);
    expect(read(STREAM, events({ usage: { prompt_tokens: 3 } })).numbers).toEqual({ ...nothing, inputTokens: 3 });
  });

  it("if a service reports the usage with each piece of an answer, the last numbers count", () => {
    const pieces = [1, 2, 3].map((n) => ({ usage: { prompt_tokens: 10, completion_tokens: n } }));
    expect(read(STREAM, events(...pieces)).numbers).toMatchObject({ inputTokens: 10, outputTokens: 3 });
  });
});

it("modelIn finds the model in the body of a request, and ignores a model inside a message or a tool", () => {
  expect(modelIn(Buffer.from('{"model":"gpt-5","messages":[]}'))).toBe("gpt-5");
  expect(modelIn(Buffer.from('{"messages":[{"content":"{\\"model\\":\\"x\\"}"}], "model": "a\\"b"}'))).toBe('a"b');
  expect(modelIn(Buffer.from('{"tools":[{"parameters":{"model":{"type":"string"}}}]}'))).toBeNull();
});

it("modelIn gives up after 1,000 places, because an agent can send a body that has millions", () => {
  const body = (places: number) => Buffer.from(`[${' "model":1'.repeat(places)},{"model":"x"}]`);
  expect(modelIn(body(999))).toBe("x");
  expect(modelIn(body(1_000))).toBeNull();
});

describe("the model gateway", () => {
  const opened: (() => Promise<unknown>)[] = [];
  afterEach(async () => {
    for (const close of opened.splice(0).reverse()) await close();
  });

  /** Starts a gateway in front of a service. `lines` has the lines that the gateway adds to the ledger. */
  async function gatewayTo(
    answer: (response: ServerResponse, headers: IncomingHttpHeaders) => void,
    type: RemoteProvider["type"] = "openai",
    usedUp: Error | null = null,
  ) {
    const checks: string[] = [];
    const lines: (Consumer & { id?: string; outcome: LedgerLine["outcome"]; numbers?: UsageNumbers })[] = [];
    const seen: IncomingHttpHeaders[] = [];
    const bodies: string[] = [];
    const server = createServer((request, response) => {
      seen.push(request.headers);
      let body = "";
      request.setEncoding("utf8").on("data", (piece) => {
        body += piece;
      });
      request.once("end", () => {
        bodies.push(body);
        answer(response, request.headers);
      });
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const source = { apiKey: null, bearer: false };
    const ann = { user: "ann", sessionId: "one", model: "default", tokenId: "k1" };
    const ledger = {
      completed: () => undefined,
      begin: (_: string, consumer: Consumer, id?: string) => {
        lines.push({ ...consumer, ...(id === undefined ? {} : { id }), outcome: "begun" });
        let isOver = false;
        const end = (outcome: LedgerLine["outcome"], numbers?: UsageNumbers) => {
          if (!isOver) lines.push({ ...consumer, outcome, ...(numbers === undefined ? {} : { numbers }) });
          isOver = true;
        };
        return { end };
      },
    };
    const consumer = { ...ann, passed: 0, turns: 1, isExpected: false, trouble: null };
    const checkBudget = async (user: string, isTurn: boolean) => {
      checks.push(`${user} ${isTurn}`);
      if (usedUp !== null) throw usedUp;
      return await Promise.resolve();
    };
    const metering = { ledger, consumers: new Map([["one", consumer]]), checkBudget };
    const provider = { type, baseUrl: url, wireApi: "completions", ...source } as const;
    const gateway = await ModelGateway.start(provider, null, {}, { metering });
    const stop = async () => {
      server.closeAllConnections();
      if (server.listening) await new Promise((resolve) => server.close(resolve));
    };
    opened.push(stop, async () => await gateway.close());
    const { baseUrl, apiKey } = gateway.providerFor("one");
    const ask = async (path = "/chat/completions", init: RequestInit = {}) =>
      await fetch(`${baseUrl}${path}`, {
        method: "POST",
        body: '{"model":"gpt-5"}',
        headers: { authorization: `Bearer ${apiKey}`, "x-api-key": String(apiKey) },
        ...init,
      });
    return { lines, seen, bodies, checks, consumer, ask, stop, ann: { ...ann, model: "gpt-5" } };
  }

  it("the gateway counts requests before passing them on, and tokens before passing on an answer's end", async () => {
    let before: number | undefined;
    const at = await gatewayTo((response) => {
      before = at.lines.length;
      response.writeHead(200, { "content-type": STREAM });
      for (const piece of COMPLETIONS) response.write(piece);
      // The stream stays open after its last event.
    });
    const answer = await at.ask();
    const reader = answer.body?.getReader();
    let text = "";
    while (!text.includes(DONE)) text += Buffer.from((await reader?.read())?.value ?? []).toString();
    expect(before).toBe(1);
    expect(at.lines).toEqual([
      { ...at.ann, id: at.seen[0]?.["x-client-request-id"], outcome: "begun" },
      { ...at.ann, outcome: "completed", numbers: REPORTED },
    ]);
    expect(text).toBe(COMPLETIONS.join(""));
    await reader?.cancel();
  });

  it("the gateway asks for uncompressed answers, because it cannot read the usage in compressed ones", async () => {
    const at = await gatewayTo((response) => response.end("{}"));
    await (await at.ask()).text();
    expect(at.seen[0]?.["accept-encoding"]).toBe("identity");
  });

  it("the gateway counts refused and cut requests, but not a request that never reached the service", async () => {
    let isBroken = false;
    const at = await gatewayTo((response) => {
      if (isBroken) response.write("data: {}\n\n", () => response.destroy());
      else response.writeHead(429).end("{}");
    });
    await (await at.ask()).text();
    isBroken = true;
    await (await at.ask()).text().catch(() => "cut");
    await at.stop();
    expect((await at.ask()).status).toBe(502);
    expect(at.lines.map(({ outcome }) => outcome)).toEqual(["begun", "failed", "begun", "cut"]);
    expect(at.lines[1]?.numbers).toEqual({ ...REPORTED, inputTokens: null, outputTokens: null, cacheReadTokens: null });
    // 17 bytes in the request and 10 in the answer
    expect(at.lines[3]?.numbers).toMatchObject({ inputTokens: 5, outputTokens: 3 });
  });

  it.each([
    ["/chat/completions", "openai", STREAM, COMPLETIONS[0], 250_000],
    ["/responses", "openai", STREAM, RESPONSES[0], 250_000],
    ["/responses", "openai", "application/json", "{", 250_000],
    ["/v1/messages", "anthropic", STREAM, MESSAGES[0], 100], // the service reports the input first
    ["/v1/messages", "anthropic", STREAM, "event: ping\n", 500_000],
  ] as const)(
    "if an agent hangs up before the usage of %s (%s, %s), the gateway counts an estimate",
    async (path, type, contentType, begin = "", inputTokens) => {
      const at = await gatewayTo((response) => {
        response.writeHead(200, { "content-type": contentType });
        response.write(begin);
      }, type);
      // The gateway keeps the smaller body, and passes on the larger one as it arrives.
      const body = JSON.stringify({ x: "x".repeat(4 * (type === "openai" ? 250_000 : 500_000) - '{"x":""}'.length) });
      const reader = (await at.ask(path, { body })).body?.getReader();
      await reader?.read();
      await reader?.cancel();
      await expect.poll(() => at.lines.length).toBe(2);
      const outputTokens = Math.ceil(begin.length / 4);
      expect(at.lines[1]).toMatchObject({ outcome: "cut", numbers: { inputTokens, outputTokens } });
    },
  );

  it("if a service reports no usage, the gateway counts an estimate, because the answer would cost nothing otherwise", async () => {
    const at = await gatewayTo((response) => response.writeHead(200, { "content-type": STREAM }).end(DONE));
    await (await at.ask()).text();
    expect(at.lines[1]).toMatchObject({ outcome: "completed", numbers: { inputTokens: 5, outputTokens: 4 } });
  });

  it("if an agent hangs up before the answer begins, the gateway counts an estimate of the input", async () => {
    const stop = new AbortController();
    const at = await gatewayTo(() => stop.abort());
    await expect(at.ask("/chat/completions", { signal: stop.signal })).rejects.toThrow("abort");
    await expect.poll(() => at.lines.length).toBe(2);
    expect(at.lines[1]).toMatchObject({ outcome: "cut", numbers: { inputTokens: 5, outputTokens: 0 } });
  });

  it("the gateway refuses responses in the background, whose usage it would never see", async () => {
    const at = await gatewayTo((response) => response.end("{}"));
    const key = JSON.stringify("background");
    for (const body of [
      `{${key}:true}`,
      `{"x":"${"x".repeat(1_500_000)}", ${key} : true}`,
      '{"b\\u0061ckground":true}',
      `{${key}:1}`,
    ]) {
      const answer = await at.ask("/responses?a=b", { body });
      expect(answer.status).toBe(400);
      expect(await answer.json()).toMatchObject({ error: { type: "invalid_request_error" } });
    }
    expect([at.bodies, at.lines]).toEqual([[], []]);
    for (const body of ['{ "a":1}', `{ ${key} : false}`, `{"input":${JSON.stringify(`{${key}:true}`)}}`]) {
      expect((await at.ask("/responses", { body })).status).toBe(200);
      expect(at.bodies.at(-1)).toBe(body);
    }
  });

  it.each([
    ["no JSON", "no JSON"],
    ["an array", "[{}]"],
    ["NaN", '{"stream":true,"background":true,"x":NaN}'],
    ["a byte order mark", '\ufeff{"stream":true,"background":true}'],
    ["UTF-16", Buffer.from('{"stream":true,"background":true}', "utf16le")],
    ["a key twice", '{"stream":true,"stream":false,"background":true,"background":false}'],
    ["an escape in a key", '{"\\u0073tream":true,"\\u0062ackground":true}'],
    ["32 MB of values", `{"x":[${"[],".repeat(10 * 1024 * 1024)}[]]}`],
    ["more levels than the stack has", `{"x":${"[".repeat(100_000)}${"]".repeat(100_000)}}`],
  ])(
    "the gateway refuses a body that services could understand in another way, or that takes long to parse: %s",
    async (_, body) => {
      const at = await gatewayTo((response) => response.end("{}"));
      for (const path of ["/chat/completions", "/responses"]) {
        const answer = await at.ask(path, { body });
        expect(answer.status).toBe(400);
        expect(await answer.json()).toMatchObject({ error: { type: "invalid_request_error" } });
      }
      expect([at.bodies, at.lines]).toEqual([[], []]);
    },
  );

  it("the gateway passes on a request whose model name is invalid, and counts it for the session's model", async () => {
    const at = await gatewayTo((response) => response.writeHead(400).end("{}"));
    expect((await at.ask(undefined, { body: '{"model":"\\q"}' })).status).toBe(400);
    expect(at.lines[0]).toMatchObject({ ...at.ann, model: "default", outcome: "begun" });
  });

  it("the gateway counts no request for the list of models or for the token count of a text", async () => {
    const at = await gatewayTo((response) => response.end("{}"), "anthropic");
    await (await at.ask("/v1/models", { method: "GET", body: null })).text();
    await (await at.ask("/v1/messages/count_tokens")).text();
    expect(at.lines).toEqual([]);
    await (await at.ask("/v1/messages")).text();
    expect(at.lines).toHaveLength(2);
  });

  it("the gateway makes each streamed completion report its usage, however large the request is and however it is framed", async () => {
    const at = await gatewayTo((response) => response.end("{}"));
    const usage = { include_usage: true };
    const large = "x".repeat(1_500_000);
    const hidden = '{"stream":true,"metadata":{"stream_options":{"include_usage":true}}}';
    const end = ',"stream_options":{"include_usage":true}}';
    for (const body of [
      '{"stream":true}',
      hidden,
      `{"stream":true,"stream_options":{"include_usage":false},"x":"${large}"}`,
      `{"x":"\\u001b","stream":true${end}`,
    ]) {
      await (await at.ask(undefined, { body })).text();
      expect(JSON.parse(at.bodies.at(-1) ?? "")).toMatchObject({ stream: true, stream_options: usage });
    }
    // A service could take the first of two equal keys.
    for (const key of ["stream_options", "stream_option\\u0073"])
      expect((await at.ask(undefined, { body: `{"${key}":{"include_usage":false},"stream":true${end}` })).status).toBe(
        400,
      );
    const chunks = new Blob(['{"stream":true}']).stream();
    await (await at.ask(undefined, { body: chunks, duplex: "half" } as RequestInit)).text();
    expect(JSON.parse(at.bodies.at(-1) ?? "")).toEqual({ stream: true, stream_options: usage });
    for (const body of [`{ "a":1.0,"stream":true${end}`, '{ "a":1.0,"stream":false}', "{}"]) {
      await (await at.ask(undefined, { body })).text();
      expect(at.bodies.at(-1)).toBe(body);
    }
  });

  it("the gateway refuses a completion of more than 32 MB, because it would have to keep it", async () => {
    const at = await gatewayTo((response) => response.end("{}"));
    const status = await at.ask(undefined, { body: `{"stream":true,"x":"${"x".repeat(33 * 1024 * 1024)}"}` }).then(
      (answer) => answer.status,
      () => "closed", // while the client was still sending
    );
    expect([413, "closed"]).toContain(status);
    expect(at.bodies).toEqual([]);
  });

  it.each(["openai", "anthropic"] as const)(
    "outside of a turn, the gateway (%s) refuses requests that consume tokens, unless a client or a task may cause them",
    async (type) => {
      const at = await gatewayTo((response) => response.end("{}"), type);
      const path = type === "openai" ? "/chat/completions" : "/v1/messages";
      at.consumer.turns = 0;
      const refused = await at.ask(path);
      expect([refused.status, at.bodies, at.lines]).toEqual([422, [], []]);
      expect(await refused.json()).toMatchObject({ error: { type: "permission_error" } });
      at.consumer.isExpected = true;
      expect((await at.ask(path)).status).toBe(200);
      expect(at.checks).toEqual(["ann false"]);
    },
  );

  it.each([
    ["openai", { error: { type: "rate_limit_error", code: "insufficient_quota" } }],
    ["anthropic", { type: "error", error: { type: "rate_limit_error" } }],
  ] as const)("the gateway (%s) asks for the budget at each request, and refuses with 429", async (type, error) => {
    const options = { source: "user", used: 7, retryAfterMs: 1 } as const;
    const at = await gatewayTo((response) => response.end("{}"), type, limitReached("tokensPerDay", 5, options));
    const answer = await at.ask(type === "openai" ? "/chat/completions" : "/v1/messages");
    expect([answer.status, answer.headers.get("x-should-retry"), at.bodies]).toEqual([429, "false", []]);
    expect(await answer.json()).toMatchObject(error);
    expect(at.checks).toEqual(["ann true"]);
  });

  it("a store that does not answer does not cut a turn, but outside of a turn the gateway refuses requests", async () => {
    const at = await gatewayTo((response) => response.end("{}"), "openai", new Error("the store is away"));
    expect((await at.ask()).status).toBe(200);
    Object.assign(at.consumer, { turns: 0, isExpected: true });
    expect((await at.ask()).status).toBe(503);
  });
});
