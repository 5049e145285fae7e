import type * as v from "valibot";
import type { Action, Identity } from "../identity/identity.js";
import type { ApiFleet } from "./fleet.js";
import type { EventStream } from "./sse.js";

type Method = "GET" | "POST" | "PUT" | "PATCH" | "DELETE";

/** A request that the door has admitted. The schemas of its route have validated its input. */
interface Call<Params, Query, Body> {
  fleet: ApiFleet;
  identity: Identity;
  params: Params;
  query: Query;
  body: Body;
  /** The text of the header `If-Match`. Undefined if the request has none. */
  ifMatch: string | undefined;
  /** The text of the header `If-None-Match`. Undefined if the request has none. */
  ifNoneMatch: string | undefined;
  /** The text of the header `Last-Event-ID`. Undefined if the request has none. */
  lastEventId: string | undefined;
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

export interface Answer<Result> {
  /** Default: the status of the route's answer. */
  status?: 304;
  headers?: Readonly<Record<string, string>>;
  /** Undefined for an answer without a body. */
  body?: Result;
  /** The events that are sent in place of a body. */
  stream?: EventStream;
  /** Settles when the work is over, which may be after the client has left the stream. */
  done?: Promise<void>;
}

type Schema<T = unknown> = v.GenericSchema<unknown, T>;

/** One route of the HTTP API: its policy, the schemas of its input and its answer, its description, and its handler. */
interface Route<Params = unknown, Query = unknown, Body = unknown, Result = unknown> {
  method: Method;
  /** The path with its parameters in braces, as OpenAPI writes it. */
  path: `/v1/${string}`;
  /** The name of the operation, for clients that are generated from the OpenAPI document. */
  operation: string;
  action: Action;
  /** The action that a request needs because of its query, which may ask for data of other users. Default: `action`. */
  actionOf?(query: Query, identity: Identity): Action;
  /** `session`: the policy decides about the session whose id is `{id}` in the path. `none`: there is no session. */
  about: "session" | "none";
  /** Whether a draining door refuses the request. */
  isWork?: boolean;
  summary: string;
  description: string;
  tag: "Caller" | "Sessions" | "Turns" | "Requests" | "Servers" | "Tokens" | "Users" | "Events";
  params?: Schema<Params> | null;
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
    status: 200 | 201 | 202 | 204;
    description: string;
    schema: Schema<Result> | null;
    headers?: readonly string[];
    /** The description of the events, if the route can answer with a stream. */
    stream?: string;
    /** The data of each kind of event in the stream, by name. The description adds `problem`. */
    events?: Readonly<Record<string, Schema>>;
  };
  /** The status codes of the errors that are special to this route, for its description. */
  errors?: readonly (404 | 409 | 412 | 413 | 429 | 502 | 504)[];
  /** How long the request may take, in milliseconds. Null: no limit. */
  limitMs?: number | null;
  handle(call: Call<Params, Query, Body>): Promise<Answer<Result>>;
}

/** The values of the fields that a row leaves out. */
const DEFAULTS = { isWork: false, params: null, query: null, body: null, errors: [], limitMs: 30_000 } as const;

// biome-ignore lint/suspicious/noExplicitAny: the schemas of a route produce exactly what its handler takes
type Untyped = Route<any, any, any, any>;

/** A complete route without the types of its input and answer, so that one table can contain all routes. */
export type AnyRoute = Untyped & Required<Pick<Untyped, keyof typeof DEFAULTS>>;

/** Lets the compiler infer the types of a route from its schemas. */
export function route<Params, Query, Body, Result>(row: Route<Params, Query, Body, Result>): AnyRoute {
  return { ...DEFAULTS, ...row };
}

/** The name of a route in errors, metrics and logs. */
export function nameOf({ method, path }: Pick<AnyRoute, "method" | "path">): string {
  return `${method} ${path}`;
}
