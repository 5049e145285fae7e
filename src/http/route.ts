import type * as v from "valibot";
import type { Action, Identity } from "../identity/identity.js";
import type { ApiFleet } from "./fleet.js";
import { object, text } from "./routes/fields.js";
import type { EventStream } from "./sse.js";

type Method = "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
/** The headers of a request that routes read. */
type Read = "If-Match" | "If-None-Match" | "Last-Event-ID";

/** A request that the door has admitted. The schemas of its route have validated its input. */
interface Call<Params, Query, Body> {
  fleet: ApiFleet;
  identity: Identity;
  params: Params;
  query: Query;
  body: Body;
  header(name: Read): string | undefined;
  /** The key in the header `Idempotency-Key`. Undefined if the request has none, or if the route ignores the header. */
  idempotencyKey: string | undefined;
  /** Whether the client accepts a stream of events, and the route can answer with a stream. */
  acceptsStream: boolean;
  /**
   * The GitHub token with which the user signed on. Null if the user signed on with something else, if the
   * configuration names a provider, or if the session belongs to somebody else.
   */
  gitHubToken: string | null;
  /** The default limits of a user, and the number of connections and requests that this user has open. */
  limits: { connections: number };
  /** Aborts when the client disconnects, or when {@link lasting} aborts. */
  signal: AbortSignal;
  /**
   * Aborts when the time of the request is up, when the token is no longer valid, or when the door closes. If the route
   * has a time limit, this signal does not abort when the client disconnects.
   */
  lasting: AbortSignal;
  /** Aborts when the door begins to drain. */
  draining: AbortSignal;
}

/** The answer of a route that is not only a body with the status of the route. */
export class Reply<Result = unknown> {
  readonly fields: ReplyFields<Result>;

  constructor(fields: ReplyFields<Result>) {
    this.fields = fields;
  }
}

interface ReplyFields<Result> {
  /** Default: the status of the route's answer. */
  status?: 304;
  headers?: Readonly<Record<string, string>>;
  body?: Result;
  /** The events that are sent in place of a body. */
  stream?: EventStream;
  /** Settles when the work is over, which may be after the client has left the stream. */
  done?: Promise<void>;
}

type Schema<T = unknown> = v.GenericSchema<unknown, T>;

/** The parameters in a path, such as `id` in `/v1/users/{id}`. */
type Params<Path extends string> = Path extends `${string}{${infer Name}}${infer Rest}` ? Name | Params<Rest> : never;
type Tag = "Caller" | "Sessions" | "Turns" | "Requests" | "Servers" | "Tokens" | "Users" | "Events";

/**
 * One route of the HTTP API: its policy, the schemas of its input and its answer, its description, and its handler. The
 * policy decides about the session `{id}` if the path begins with `/v1/sessions/{id}`; otherwise, there is no session.
 */
interface Row<Path extends string = string, Query = unknown, Body = unknown, Result = unknown> {
  /** The name of the operation, for clients that are generated from the OpenAPI document. */
  operation: string;
  action: Action;
  /** The action that a request needs because of its query, which may ask for data of other users. Default: `action`. */
  actionOf?(query: Query, identity: Identity): Action;
  /** Whether a draining door refuses the request. */
  isWork?: boolean;
  summary: string;
  description: string;
  /** Null if the route takes no query. */
  query?: Schema<Query> | null;
  /** Null if the request has no body. */
  body?: Schema<Body> | null;
  /** Whether the route reads the header `Idempotency-Key`. */
  isRepeatable?: true;
  /** Whether the body may be left out. The schema then gets an empty object. */
  isBodyOptional?: true;
  /** Whether the route reads `If-Match`, and refuses the request if the session no longer has this ETag. */
  takesIfMatch?: true;
  answer: {
    /** Default: 200. */
    status?: 201 | 202 | 204;
    description: string;
    /** Null if the answer has no body, or is a stream. */
    schema: Schema<Result> | null;
    headers?: readonly string[];
    /** The description of the events, if the route can answer with a stream. */
    stream?: string;
    /** The data of each kind of event in the stream, by name. The description adds `problem`. */
    events?: Readonly<Record<string, Schema>>;
  };
  /**
   * The status codes of the errors that are special to this route, for its description. 404 is added if the path has a
   * parameter, and 413 if there is a body.
   */
  errors?: readonly (404 | 409 | 412 | 413 | 429 | 502 | 504)[];
  /** How long the request may take, in milliseconds. Null: no limit. */
  limitMs?: number | null;
  /** Returns the body of the answer; undefined if it has none. */
  handle(call: Call<Record<Params<Path>, string>, Query, Body>): Promise<Result | Reply<Result>>;
}

/** The values of the fields that a row leaves out. */
const DEFAULTS = { isWork: false, query: null, body: null, errors: [], limitMs: 30_000 } as const;

// biome-ignore lint/suspicious/noExplicitAny: the schemas of a route produce exactly what its handler takes
type Untyped = Row<any, any, any, any>;

/** The fields of a route that come from its name. */
interface Described {
  tag: Tag;
  /** The method and the path, which are its name in errors, metrics and logs. */
  name: string;
  method: Method;
  /** The path with its parameters in braces, as OpenAPI writes it. */
  path: string;
  params: v.GenericSchema | null;
  about: "session" | "none";
}

/** A complete route without the types of its input and answer, so that one table can contain all routes. */
export type AnyRoute = Untyped & Required<Pick<Untyped, keyof typeof DEFAULTS>> & Described;

/** Makes a route. The compiler infers the types of its handler from its path and its schemas. */
export function route<Path extends string, Query, Body, Result>(
  tag: Tag,
  name: `${Method} ${Path}`,
  row: Row<Path, Query, Body, Result>,
): AnyRoute {
  const [method, path] = name.split(" ") as [Method, string];
  const names = [...path.matchAll(/\{(\w+)\}/g)].map(([, each]) => each);
  const params = names.length === 0 ? null : object(Object.fromEntries(names.map((each) => [each, text])));
  const about = path.startsWith("/v1/sessions/{id}") ? "session" : "none";
  return { ...DEFAULTS, ...row, tag, name, method, path, params, about };
}
