import { expect, it } from "vitest";
import { renderPlan, renderRebalanced } from "../../src/cli/render/route.js";

const move = { user: "alice", from: "h1", to: "h2", sessions: 1 };
const stay = { user: "bob", host: "h1", reason: "the disk of h1 has 2 sessions of this user" };
const moved = { user: "alice", from: "h1", to: "h2", released: ["a"], kept: [], failure: null };
const hosts = [{ name: "h1", users: 1, planned: 0, takesUsers: true }];
const lastLine = (text: string) => text.split("\n").at(-1);

it("the texts of route --plan and route --rebalance count users and sessions in correct English", () => {
  expect(lastLine(renderPlan({ hosts, moves: [], stays: [] }))).toBe("Nothing to move.");
  expect(lastLine(renderPlan({ hosts, moves: [move], stays: [] }))).toBe("1 user would move.");
  expect(lastLine(renderPlan({ hosts, moves: [move, move], stays: [stay] }))).toBe(
    "2 users would move, and 1 would stay where their sessions are.",
  );
  expect(renderRebalanced({ moved: [], stays: [] })).toBe("Nothing to move.");
  expect(renderRebalanced({ moved: [moved], stays: [] })).toBe("1 user moved with 1 session.");
  expect(renderRebalanced({ moved: [], stays: [stay] })).toBe("0 users moved with 0 sessions. Not moved: 1 user.");
  const kept = [{ id: "b", reason: "leased" as const }];
  expect(renderRebalanced({ moved: [{ ...moved, kept }], stays: [stay] })).toMatch(
    /^1 user moved with 1 session\. Not moved: 1 session and 1 user\.\n/,
  );
});
