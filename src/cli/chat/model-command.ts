import { nearestOf } from "../../config/values/nearest.js";
import { quote } from "../../errors.js";
import { colour } from "../render/colour.js";
import type { Conversation, Conversations } from "./conversation/conversation.js";
import { type Workplace, work } from "./work.js";

/** The most models that the error about an unknown model lists. */
const MOST_MODELS = 12;

/** Changes the model to `wanted` unless that is empty, and shows it. Resolves with its name; null if it is unknown. */
export async function chooseModel(
  place: Workplace & { conversations: Conversations },
  conversation: Conversation,
  wanted: string,
): Promise<string | null> {
  const { window, conversations } = place;
  const what = wanted === "" ? "Asking for the models" : "Changing the model";
  const { name, offered } = await work(place, what, async (signal) => {
    if (wanted !== "") await change(conversation, wanted, signal);
    const name = await conversation.model(signal);
    return { name, offered: wanted === "" ? await conversation.models(signal) : [] };
  });
  window.say(`The model is ${name ?? "the provider's default"}.`);
  if (conversations.isEcho) window.say("The echo model answers in its place.", colour.dim);
  if (offered.length > 0) window.say(`The provider offers: ${offered.join(", ")}.`);
  return name;
}

/** Changes the model. Refuses a model that the provider does not list. If it lists none, the server decides. */
async function change(conversation: Conversation, wanted: string, signal: AbortSignal): Promise<void> {
  const offered = await conversation.models(signal).catch((error: unknown): string[] => {
    if (signal.aborted) throw error;
    return [];
  });
  if (offered.length > 0 && !offered.includes(wanted)) throw notOffered(wanted, offered);
  await conversation.useModel(wanted, signal);
}

function notOffered(wanted: string, offered: readonly string[]): Error {
  const [nearest] = nearestOf(wanted, offered, (each) => each);
  const meant = nearest === undefined ? "" : ` Did you mean ${nearest}?`;
  const some = offered.slice(0, MOST_MODELS).join(", ");
  const more = offered.length > MOST_MODELS ? ", and more, which /model lists" : "";
  return new Error(`The provider does not offer the model ${quote(wanted)}.${meant} It offers: ${some}${more}.`);
}
