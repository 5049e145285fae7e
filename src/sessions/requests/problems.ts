import { FleetError, option, quote } from "../../errors.js";
import type { AgentRequest, RequestAnswer, RequestOutcome, Verdict } from "./request.js";

const LIST = "GET /v1/sessions/{id}/requests lists the requests that wait.";

export function requestNotFound(session: string, id: string): FleetError {
  const message = `Session ${quote(session)} has no request ${quote(id)} of this user.`;
  return new FleetError("FLEET_REQUEST_NOT_FOUND", message, { suggestions: [LIST] });
}

const ENDS: Readonly<Record<RequestOutcome, string>> = {
  approved: "it was approved",
  denied: "it was denied",
  answered: "it was answered",
  expired: "nobody answered in time",
  cancelled: "its turn has ended",
};

export function requestClosed(id: string, outcome: RequestOutcome): FleetError {
  const message = `Request ${quote(id)} no longer waits for an answer: ${ENDS[outcome]}.`;
  return new FleetError("FLEET_REQUEST_CLOSED", message, { suggestions: [LIST] });
}

/**
 * Converts an answer into a verdict. @throws FleetError `FLEET_USAGE_INVALID` when the answer does not fit the request.
 */
export function verdictOf({ kind, question }: AgentRequest, { decision, reason, answer }: RequestAnswer): Verdict {
  if (kind === "permission") {
    if (answer !== undefined) throw invalid(`${option("answer")} answers a question, and this is a permission.`);
    if (decision === undefined) throw invalid(`A permission needs ${option("decision")}: "approve" or "deny".`);
    if (decision === "deny") return { outcome: "denied", reason };
    if (reason !== undefined) throw invalid(`${option("reason")} is allowed only with "deny".`);
    return { outcome: "approved" };
  }
  if (decision !== undefined || reason !== undefined) {
    const given = option(decision === undefined ? "reason" : "decision");
    throw invalid(`${given} is for a permission, and this is a question.`);
  }
  if (answer === undefined || answer.trim() === "") throw invalid(`A question needs ${option("answer")}, a text.`);
  const { choices, freeform } = question ?? { choices: null, freeform: true };
  if (!freeform && choices?.includes(answer) === false) {
    throw invalid(`${option("answer")} ${quote(answer)} is not a choice. Allowed: ${choices.map(quote).join(", ")}.`);
  }
  return { outcome: "answered", answer };
}

function invalid(message: string): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", message);
}
