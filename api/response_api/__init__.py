"""/v1/responses: answers that are kept, continued, polled and streamed again.

request     from a body to a Job, and to the row that is stored
items       its output, from the job's choice
body        the response object, from the row and the job's Result
events      the stream, as a function of the response's text alone: any process tells it the same way, at any time
pieces      where that text is cut
outputs     a job's events with its Result made whole and recorded before anybody reads it
runs        the background responses that this process follows
stream      server-sent events
create      the way of a new response
"""
