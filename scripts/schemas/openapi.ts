import { toJsonSchema } from "@valibot/to-json-schema";
import { type GenericSchema, getMetadata } from "valibot";
import { ROUTES } from "../../src/http/app.js";
import type { AnyRoute } from "../../src/http/route.js";
import * as a from "../../src/http/routes/admin.js";
import { request } from "../../src/http/routes/requests.js";
import * as s from "../../src/http/routes/schemas.js";
import { SESSION_EVENTS } from "../../src/http/routes/turns.js";
import { type Action, decide, type Scope } from "../../src/identity/identity.js";
import type { OpenApi } from "./http-contract.js";
import type { JsonSchema } from "./json-schema.js";

type Json = Record<string, unknown>;

const TAGS: Readonly<Record<AnyRoute["tag"], string>> = {
  Caller: "Who makes the requests.",
  Sessions: "Conversations, each with an owner.",
  Turns: "Prompts and their replies.",
  Requests: "The permissions and questions of the agent, which the user answers during a turn.",
  Servers: "The servers and the hosts of the fleet. For operators.",
  Tokens: "The tokens of users. For operators.",
  Users: "The users, what each may have, and the erasure of their data. For operators.",
  Events: "The audit log: who did what, and why.",
};

/** The errors that every route can answer with. */
const EVERYWHERE = [401, 403, 422, 429, 500, 503] as const;
const ERRORS: Readonly<Record<number, string>> = {
  401: "The request has no valid token.",
  403: "The scopes of the token do not allow this, or the request comes from a foreign page.",
  404: "There is no such thing, or the caller may not know of it.",
  409: "The request conflicts with another use.",
  412: "The session has changed, so that its `ETag` is not one in `If-Match`.",
  413: "The body is too large.",
  422: "The input is not allowed.",
  429: "A limit is reached. The header Retry-After has the number of seconds to wait.",
  500: "The fleet failed, or its configuration does not allow the request.",
  502: "The turn failed, or the server or the model service failed.",
  503: "The fleet begins no new work, or a host is away. The header Retry-After has the number of seconds to wait.",
  504: "The turn or the start of a server took too long.",
};
const HEADERS: Readonly<Record<string, string>> = {
  ETag: "Identifies this state of the session, for `If-None-Match`.",
  Location: "The path of what was created.",
};

const CONDITIONS: Readonly<Record<string, string>> = {
  "If-Match": "The `ETag` of an earlier answer. If the session has changed since, the request is refused with 412.",
  "If-None-Match": "The `ETag` of an earlier answer.",
  "Last-Event-ID": "The id of the last event that the client has.",
  "Idempotency-Key":
    "1 to 255 visible ASCII characters. The caller's requests with the same key count once, for 24 hours. Another request " +
    "with the key is refused with 422.",
};

/** The schemas that have a name in the document, so that generated clients have one type for each. */
const NAMED = {
  Caller: s.caller,
  Lease: s.lease,
  Session: s.session,
  Turn: s.turn,
  Usage: s.usage,
  TranscriptEntry: s.transcriptEntry,
  Server: s.server,
  Stopped: s.stoppedServer,
  BusyServer: a.busyServer,
  Host: a.host,
  Sample: a.sample,
  Token: s.token,
  AgentRequest: request,
  UserMessage: SESSION_EVENTS["user.message"],
  AssistantMessageDelta: SESSION_EVENTS["assistant.message_delta"],
  AssistantMessage: SESSION_EVENTS["assistant.message"],
  ToolExecutionStart: SESSION_EVENTS["tool.execution_start"],
  ToolExecutionComplete: SESSION_EVENTS["tool.execution_complete"],
  SessionError: SESSION_EVENTS["session.error"],
  Abort: SESSION_EVENTS.abort,
  SessionShutdown: SESSION_EVENTS["session.shutdown"],
};

const PROBLEM: Json = {
  type: "object",
  description: "An error (RFC 9457).",
  properties: {
    type: { type: "string", format: "uri" },
    title: { type: "string", description: "The meaning of the error." },
    status: { type: "integer" },
    code: { type: "string", pattern: "^FLEET_[A-Z_]+$", description: "`copilotfleet explain CODE` explains it." },
    detail: { type: "string", description: "The fault of this request." },
    suggestions: { type: "array", items: { type: "string" }, description: "The next steps." },
    retryable: { type: "boolean", description: "Whether the same request may succeed in a moment." },
    limit: { type: "string", description: "The limit that was reached." },
    retryAfterMs: { type: "number" },
    requestId: { type: "string" },
  },
  required: ["type", "title", "status", "code", "detail", "suggestions", "retryable", "requestId"],
};

/** The description of the HTTP API in OpenAPI 3.1, from its table of routes. */
export function openApi(version: string): OpenApi {
  const paths: Record<string, Json> = {};
  for (const route of ROUTES) {
    const item = paths[route.path] ?? {};
    item[route.method.toLowerCase()] = operation(route);
    paths[route.path] = item;
  }
  const document = {
    openapi: "3.1.0",
    info: {
      title: "copilotfleet",
      version,
      summary: "Runs headless GitHub Copilot servers for many users.",
      description: "docs/http.md describes this API with examples.",
      license: { name: "MIT", identifier: "MIT" },
    },
    servers: [{ url: "/", description: "The address of serve.http." }],
    security: [{ bearer: [] }],
    tags: Object.entries(TAGS).map(([name, description]) => ({ name, description })),
    paths,
    components: {
      securitySchemes: {
        bearer: {
          type: "http",
          scheme: "bearer",
          description: "A token of the fleet, a JSON Web Token of an identity provider, or a GitHub token.",
        },
      },
      schemas: {
        ...Object.fromEntries(Object.entries(NAMED).map(([name, schema]) => [name, named(name, schema)])),
        Problem: PROBLEM,
      },
      responses: Object.fromEntries(
        Object.keys(ERRORS).map((status) => [`Error${status}`, errorResponse(Number(status))]),
      ),
    },
  };
  return document as unknown as OpenApi;
}

function operation(route: AnyRoute): Json {
  const { operation: operationId, tag, summary, description, body, isBodyOptional, answer, errors } = route;
  const ofInput = [...(route.params === null ? [] : [404]), ...(body === null ? [] : [413])];
  const statuses = [...new Set([...EVERYWHERE, ...errors, ...ofInput])].sort();
  return {
    operationId,
    tags: [tag],
    summary,
    description: `${description} ${permission(route.action)}`,
    ...parameters(route),
    ...(body === null
      ? {}
      : {
          requestBody: { required: isBodyOptional !== true, content: { "application/json": { schema: input(body) } } },
        }),
    responses: {
      [answer.status ?? 200]: answerOf(route),
      ...(route.method === "GET" && answer.headers?.includes("ETag") === true
        ? { 304: { description: "Nothing has changed." } }
        : {}),
      ...Object.fromEntries(statuses.map((status) => [status, { $ref: `#/components/responses/Error${status}` }])),
    },
  };
}

/** Describes the scope that an action needs, in the words of docs/identity.md. */
function permission(action: Action): string {
  const allows = (scope: Scope, sessionId?: string) =>
    decide({ user: "alice", scopes: [scope], ...(sessionId === undefined ? {} : { sessionId }) }, action, "none") ===
    "allowed";
  const scope = (["read", "use", "admin", "issue"] as const).find((each) => allows(each));
  if (scope === undefined) throw new Error(`no scope allows ${action}`);
  return `Needs the scope \`${scope}\`.${allows(scope, "session") ? "" : " A token that is bound to one session does not allow it."}`;
}

function answerOf({ answer: { description, schema, stream, events, headers = [] } }: AnyRoute): Json {
  const content = {
    ...(schema === null ? {} : { "application/json": { schema: convert(schema, "output") } }),
    ...(stream === undefined ? {} : { "text/event-stream": { schema: streamOf(stream, events) } }),
  };
  const described = headers.map((name) => [name, { description: HEADERS[name], schema: { type: "string" } }]);
  return {
    description,
    ...(headers.length === 0 ? {} : { headers: Object.fromEntries(described) }),
    ...(Object.keys(content).length === 0 ? {} : { content }),
  };
}

/** Describes each server-sent event of a stream as an object with its fields. `data` is the JSON in the field `data`. */
function streamOf(description: string, events: AnyRoute["answer"]["events"]): Json {
  if (events === undefined) return { type: "string", description };
  const each = Object.entries(events).map(([name, schema]) => [name, convert(schema, "output")] as const);
  const oneOf = [...each, ["problem", { $ref: "#/components/schemas/Problem" }] as const].map(([name, data]) => ({
    type: "object",
    properties: { id: { type: "string" }, event: { type: "string", const: name }, data },
    required: ["event", "data"],
  }));
  return { description, oneOf };
}

function errorResponse(status: number): Json {
  const wait = { "Retry-After": { description: "The seconds to wait.", schema: { type: "integer" } } };
  return {
    description: ERRORS[status],
    ...(status === 429 || status === 503 ? { headers: wait } : {}),
    content: { "application/problem+json": { schema: { $ref: "#/components/schemas/Problem" } } },
  };
}

/** The parameters in the path, in the query and in headers. */
function parameters({ method, params, query, answer, takesIfMatch, isRepeatable }: AnyRoute): Json {
  const headers = [
    ...(method === "GET" && answer.headers?.includes("ETag") === true ? ["If-None-Match"] : []),
    ...(takesIfMatch === true ? ["If-Match"] : []),
    ...(answer.stream !== undefined && method === "GET" ? ["Last-Event-ID"] : []),
    ...(isRepeatable === true ? ["Idempotency-Key"] : []),
  ];
  const found = [
    ...parametersIn("path", params),
    ...parametersIn("query", query),
    ...headers.map((name) => ({
      name,
      in: "header",
      required: false,
      schema: { type: "string" },
      description: CONDITIONS[name],
    })),
  ];
  return found.length === 0 ? {} : { parameters: found };
}

function parametersIn(place: "path" | "query", schema: GenericSchema | null): Json[] {
  if (schema === null) return [];
  const { required = [] } = input(schema) as { required?: string[] };
  const { properties = {} } = convert(schema, "output") as { properties?: Record<string, Json> };
  const { entries } = schema as unknown as ReturnType<typeof s.object>;
  return Object.entries(properties).map(([name, { description, default: _, ...property }]) => {
    // A query string has numbers as text. So that generated clients get number types, use the metadata of the schema.
    const numbers = entries[name] === undefined ? {} : getMetadata(entries[name]);
    return {
      name,
      in: place,
      required: required.includes(name),
      ...(description === undefined ? {} : { description }),
      schema: "minimum" in numbers ? { type: "integer", minimum: numbers.minimum, maximum: numbers.maximum } : property,
    };
  });
}

const input = (schema: GenericSchema) => convert(schema, "input");

/** Converts a schema, without checks that JSON Schema cannot express. The descriptions name them where they matter. */
function convert(schema: GenericSchema, typeMode: "input" | "output"): Json {
  const { $schema: _, $defs: __, ...rest } = converted(schema, typeMode);
  return JSON.parse(JSON.stringify(rest).replaceAll("#/$defs/", "#/components/schemas/")) as Json;
}

/** The definition of a named schema, from `$defs`. The converted schema itself is only a reference to it. */
function named(name: string, schema: GenericSchema): Json {
  const { $defs } = converted(schema, "output") as { $defs?: Record<string, Json> };
  return JSON.parse(JSON.stringify($defs?.[name]).replaceAll("#/$defs/", "#/components/schemas/")) as Json;
}

function converted(schema: GenericSchema, typeMode: "input" | "output"): JsonSchema & Json {
  const options = { typeMode, errorMode: "ignore", target: "draft-2020-12", definitions: NAMED } as never;
  return toJsonSchema(schema, options) as unknown as JsonSchema & Json;
}
