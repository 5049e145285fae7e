import { afterAll, beforeAll, expect, it } from "vitest";
import { TestApi } from "./harness.js";

/**
 * Tests of the client that is generated from the OpenAPI document. The compiler checks each request and each field of
 * an answer.
 */

let at: TestApi;
beforeAll(async () => {
  at = await TestApi.open();
});
afterAll(async () => await at[Symbol.asyncDispose]());

/** The data of an answer. Throws if the answer is an error. */
async function dataOf<Data>(answer: Promise<{ data?: Data; error?: { code: string; detail: string } }>): Promise<Data> {
  const { data, error } = await answer;
  if (data === undefined || error !== undefined) throw new Error(JSON.stringify(error));
  return data;
}

it("a generated client creates, uses, shares, streams and deletes a session", async () => {
  const client = at.client(await at.token("alice"));
  const { user, limits } = await dataOf(client.GET("/v1/me"));
  expect({ user, sessions: limits.sessions }).toEqual({ user: "alice", sessions: 1000 });

  const made = await dataOf(client.POST("/v1/sessions", { body: { purpose: "review", ttl: "2h" } }));
  const path = { id: made.session.id };
  const { reply, usage } = await dataOf(
    client.POST("/v1/sessions/{id}/turns", { params: { path }, body: { prompt: "hello" } }),
  );
  expect({ reply, requests: usage?.requests }).toEqual({ reply: "[turn 1] hello", requests: 1 });
  const members = ["bob"];
  const changed = await dataOf(
    client.PATCH("/v1/sessions/{id}", { params: { path }, body: { members, purpose: null } }),
  );
  expect(changed.session).toMatchObject({ kind: "collaborative", members, purpose: null });
  const { sessions, next } = await dataOf(
    client.GET("/v1/sessions", { params: { query: { limit: 1, state: "idle" } } }),
  );
  expect({ ids: sessions.map(({ id }) => id), next }).toEqual({ ids: [path.id], next: null });

  const shown = await client.GET("/v1/sessions/{id}", { params: { path } });
  const known = { path, header: { "If-None-Match": shown.response.headers.get("ETag") ?? "" } };
  const again = await client.GET("/v1/sessions/{id}", { params: known });
  expect(again.response.status).toBe(304);

  const query = { follow: "false" } as const;
  const events = await dataOf(client.GET("/v1/sessions/{id}/events", { params: { path, query }, parseAs: "text" }));
  expect(events).toContain("event: user.message");
  const { entries } = await dataOf(
    client.GET("/v1/sessions/{id}/transcript", { params: { path, query: { turns: 1 } } }),
  );
  expect(entries.map(({ role }) => role)).toEqual(["user", "assistant"]);
  expect(await dataOf(client.POST("/v1/sessions/{id}/abort", { params: { path } }))).toEqual({ aborted: false });
  expect((await client.DELETE("/v1/sessions/{id}", { params: { path } })).response.status).toBe(204);
});

it("a generated client gets the code and the detail of an error", async () => {
  const client = at.client(await at.token("alice"));
  const { data, error, response } = await client.GET("/v1/sessions/{id}", { params: { path: { id: "nothing" } } });
  expect({ data, code: error?.code, status: response.status }).toEqual({
    data: undefined,
    code: "FLEET_SESSION_NOT_FOUND",
    status: 404,
  });
  expect(error?.detail).toContain("nothing");
});
